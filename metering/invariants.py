"""Invariants: what must hold in the tables. Each package exports its own; `verify` runs them all.

A table is walked in pages of its keys. A check sees the keys above `:after` up to `:upto`. It says
so in each of its parts, because Postgres does not carry a range over a join.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Literal, NamedTuple, TypeAlias

from sqlalchemy import Connection, TextClause

from metering.ids import EntryId, FaultId, WalletId

# The tables that are walked. None for a check that reads whole tables at once, because no index
# finds their keys by page.
Table: TypeAlias = Literal["wallets", "purchases", "checkouts", "usage_batches"] | None
Page: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One broken invariant: its name, what is wrong, and the wallet and entry at fault."""

    invariant: str
    detail: str
    wallet_id: WalletId | None = None
    entry_id: EntryId | None = None

    @property
    def fault_id(self) -> FaultId:
        """Return an id made of the content, so that a fault that grows is another fault."""
        content = (self.invariant, self.detail, self.wallet_id or "", self.entry_id or "")
        return FaultId("flt_" + blake2b("\0".join(content).encode(), digest_size=8).hexdigest())


Check: TypeAlias = Callable[[Connection, Page], Iterator[Fault]]


class Invariant(NamedTuple):
    """A check of each page of a table. A deep one reads too much for the scheduled walk."""

    table: Table
    check: Check
    deep: bool = False


def invariant(name: str, table: Table, query: TextClause, *, deep: bool = False) -> Invariant:
    """Return the invariant that a query returns no rows. The columns of a row are the detail."""
    return Invariant(table, partial(_faults, name=name, query=query), deep)


def in_page(column: str) -> str:
    """Return the SQL condition that a key is on the page."""
    return f"{column} > :after AND {column} <= :upto"


def _faults(conn: Connection, page: Page, *, name: str, query: TextClause) -> Iterator[Fault]:
    for found in conn.execute(query, page).mappings():
        columns = dict(found)
        wallet_id, entry_id = columns.pop("wallet_id", None), columns.pop("entry_id", None)
        yield Fault(
            invariant=name,
            detail=", ".join(f"{column} {value}" for column, value in columns.items()),
            wallet_id=wallet_id,
            entry_id=entry_id,
        )
