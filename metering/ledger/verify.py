"""Every invariant of the ledger, by name: looked up, never repaired. A fix is a new entry.

Run inside one snapshot (`REPEATABLE READ`): the checks compare tables that are being written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Connection, TextClause

from metering.ids import EntryId, WalletId
from metering.ledger import statements
from metering.ledger.entry import Entry, chain_digest
from metering.ledger.history import entry_of
from metering.ledger.lots import statements as of_lots

WALK_ROWS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One broken invariant: which, what is off, and the wallet and entry at fault."""

    invariant: str
    detail: str
    wallet_id: WalletId | None = None
    entry_id: EntryId | None = None


Check = Callable[[Connection], Iterator[Fault]]


def find_faults(conn: Connection, *, deep: bool = True) -> Iterator[Fault]:
    """Yield every fault; `deep` walks all entries and counts all event keys as well."""
    for check in (*QUICK, *(DEEP if deep else ())):
        yield from check(conn)


def _query(conn: Connection, *, invariant: str, statement: TextClause) -> Iterator[Fault]:
    """Run a query whose every row is a fault; its columns are the detail."""
    for row in conn.execute(statement):
        values = dict(row._mapping)  # noqa: SLF001
        wallet_id, entry_id = values.pop("wallet_id", None), values.pop("entry_id", None)
        yield Fault(
            invariant=invariant,
            detail=", ".join(f"{name} {value}" for name, value in values.items()),
            wallet_id=wallet_id,
            entry_id=entry_id,
        )


def _walk_chain(conn: Connection) -> Iterator[Fault]:
    """Follow every wallet's entries from the first: none missing, none edited."""
    previous: Entry | None = None
    rows = conn.execution_options(yield_per=WALK_ROWS).execute(statements.ALL_ENTRIES)
    for row in rows:
        entry = entry_of(row)
        if previous is not None and previous.wallet_id != entry.wallet_id:
            previous = None
        yield from _link_faults(previous, entry)
        previous = entry


def _link_faults(previous: Entry | None, entry: Entry) -> Iterator[Fault]:
    fault = partial(Fault, wallet_id=entry.wallet_id, entry_id=entry.entry_id)
    expected = 1 if previous is None else previous.version + 1
    if entry.version != expected:
        yield fault(
            invariant="entries are without gaps",
            detail=f"version {expected} is missing before version {entry.version}",
        )
        return
    before = (0, 0) if previous is None else (previous.after_minor, previous.remainder_after)
    if (entry.before_minor, entry.remainder_before) != before:
        yield fault(
            invariant="each entry continues the one before it",
            detail=f"version {entry.version} begins at {entry.before_minor}, not at {before[0]}",
        )
    sign = 1 if entry.is_credit else -1
    if entry.after_minor != entry.before_minor + sign * entry.amount_minor:
        yield fault(
            invariant="after = before ± amount",
            detail=f"version {entry.version} ends at {entry.after_minor}",
        )
    if entry.chain != chain_digest(b"" if previous is None else previous.chain, entry):
        yield fault(
            invariant="entries are as they were written",
            detail=f"version {entry.version} does not match its digest: it was edited",
        )


def _of(invariant: str, statement: TextClause) -> Check:
    return partial(_query, invariant=invariant, statement=statement)


QUICK: Final[tuple[Check, ...]] = (
    _of("a wallet stands where its last entry left it", statements.WALLETS_OFF_THEIR_ENTRIES),
    _of("balance = what is left in lots - debt", of_lots.WALLETS_OFF_THEIR_LOTS),
    _of("0 <= remainder < 1", statements.REMAINDERS_OUT_OF_RANGE),
    _of("every accepted event ended once", statements.SHARDS_OFF_THEIR_ACCOUNT),
    _of("alert numbers are without gaps", statements.ALERTS_WITH_GAPS),
    _of("a credited purchase has its entry", statements.PURCHASES_OFF_THEIR_ENTRY),
    _of("a checkout holds its credit or gave it back", statements.CHECKOUTS_OFF_THEIR_ENTRIES),
)
DEEP: Final[tuple[Check, ...]] = (
    _of("balance = sum of entries, version = their number", statements.WALLETS_OFF_THEIR_SUM),
    _of("a usage entry costs what its events cost", statements.ENTRIES_OFF_THEIR_EVENTS),
    _of("each posted event holds a key", statements.BATCHES_OFF_THEIR_KEYS),
    _of("a lot = what is left + what it paid + what was taken", of_lots.LOTS_OFF_THEIR_USE),
    _of("debits are paid for once, without gaps", of_lots.COVERAGE_WITH_GAPS),
    _of("debits follow each other", of_lots.DEBITS_OFF_THEIR_LINE),
    _of("the lots of a debit sum to it", of_lots.ENTRIES_OFF_THEIR_ALLOCATIONS),
    _walk_chain,
)
