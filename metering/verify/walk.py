"""The walk over all invariants, page by page, from a place that can be stored.

A page is checked in one snapshot, because the checks compare tables that are being written. Only
the count of the batches spans pages, so it leaves out batches that may not be committed yet.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from sqlalchemy import Connection, TextClause

from metering.debit import invariants as debit
from metering.invariants import Fault, Invariant, Page, Table
from metering.ledger import invariants as ledger
from metering.low_credit import invariants as low_credit
from metering.payment import invariants as payment
from metering.purchase import invariants as purchase
from metering.verify import statements

# A page takes well under a second.
PAGE_KEYS: Final = 2_000
PAGE_BATCHES: Final = 50_000
INVARIANTS: Final[Sequence[Invariant]] = (
    *ledger.INVARIANTS,
    *low_credit.INVARIANTS,
    *purchase.INVARIANTS,
    *payment.INVARIANTS,
    *debit.INVARIANTS,
)


class Stage(NamedTuple):
    """A table of the walk: the query for the end of a page, its rows, and a key before all."""

    table: Table
    next: TextClause
    rows: int = PAGE_KEYS
    first: str | int = ""


# Stored places name a stage by its index.
STAGES: Final = (
    Stage("wallets", statements.NEXT_WALLETS),
    Stage("purchases", statements.NEXT_PURCHASES),
    Stage("checkouts", statements.NEXT_CHECKOUTS),
    Stage("usage_batches", statements.NEXT_BATCHES, PAGE_BATCHES, 0),
)


@dataclass(frozen=True, slots=True)
class Place:
    """How far a walk has come: the stage, its last key, and ended events by `shard epoch`."""

    stage: int = 0
    after: str | int = ""
    settled: Mapping[str, int] = field(default_factory=dict)


def step(conn: Connection, place: Place, *, deep: bool) -> tuple[list[Fault], Place | None]:
    """Check one page; return its faults and the next place, or None at the end of the walk."""
    stage = STAGES[place.stage]
    bounds = {"after": place.after, "page": stage.rows}
    upto = conn.execute(stage.next, bounds).scalar_one()
    counts_batches = stage.table == "usage_batches"
    if upto is None:
        faults = list(_after_batches(conn, place, deep=deep)) if counts_batches else []
        return faults, _next_stage(place)
    page: Page = {"after": place.after, "upto": upto}
    faults = list(_check(conn, stage.table, page, deep=deep))
    settled = debit.count_page(conn, place.settled, page) if counts_batches else place.settled
    return faults, replace(place, after=upto, settled=settled)


def _next_stage(place: Place) -> Place | None:
    following = place.stage + 1
    return None if following == len(STAGES) else Place(following, STAGES[following].first)


def _after_batches(conn: Connection, place: Place, *, deep: bool) -> Iterator[Fault]:
    yield from debit.cursor_faults(conn, place.settled, place.after)
    yield from _check(conn, None, {}, deep=deep)


def _check(conn: Connection, table: Table, page: Page, *, deep: bool) -> Iterator[Fault]:
    for invariant in INVARIANTS:
        if invariant.table == table and (deep or not invariant.deep):
            yield from invariant.check(conn, page)
