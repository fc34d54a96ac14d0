"""The walk over every invariant, page by page, from a place that can be kept and taken up again.

A page is looked at in one snapshot, because the checks compare tables that are being written. Only
the count of the batches reaches over pages, so it counts none that could still be added to.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from sqlalchemy import Connection, TextClause

from metering.ledger.verify import statements
from metering.ledger.verify.chain import walk_chain
from metering.ledger.verify.fault import Fault, loss_of

Page = dict[str, object]
Check = Callable[[Connection, Page], Iterator[Fault]]
# Each takes well under a second.
PAGE_KEYS: Final = 2_000
PAGE_BATCHES: Final = 50_000
_BEFORE_ALL_IDS: Final = ""
_ENDED_ONCE: Final = "every accepted event ended once"


@dataclass(frozen=True, slots=True)
class Place:
    """How far a walk has come: the stage, the last key of it, events settled by `shard epoch`."""

    stage: int = 0
    after: str | int = _BEFORE_ALL_IDS
    settled: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """A table that is walked: what ends a page, what is checked of it."""

    next: TextClause
    rows: int = PAGE_KEYS
    first: str | int = _BEFORE_ALL_IDS
    quick: tuple[Check, ...] = ()
    deep: tuple[Check, ...] = ()


def step(conn: Connection, place: Place, *, deep: bool) -> tuple[list[Fault], Place | None]:
    """Check one page; return its faults and where to go on: None at the end of the walk."""
    stage = _STAGES[place.stage]
    bounds = {"after": place.after, "page": stage.rows}
    upto = conn.execute(stage.next, bounds).scalar_one()
    if upto is None:
        faults = list(_end_of_batches(conn, place, deep=deep)) if stage is _BATCHES else []
        return faults, _next_stage(place)
    page: Page = {"after": place.after, "upto": upto}
    checks = (*stage.quick, *(stage.deep if deep else ()))
    faults = [fault for check in checks for fault in check(conn, page)]
    settled = _settled_with(conn, place, page) if stage is _BATCHES else place.settled
    return faults, replace(place, after=upto, settled=settled)


def _next_stage(place: Place) -> Place | None:
    following = place.stage + 1
    if following == len(_STAGES):
        return None
    return Place(following, _STAGES[following].first)


def _settled_with(conn: Connection, place: Place, page: Page) -> dict[str, int]:
    """Add what the batches of a page settled."""
    settled = dict(place.settled)
    for row in conn.execute(statements.SETTLED_OF_PAGE, page):
        key = f"{row.shard} {row.epoch}"
        settled[key] = settled.get(key, 0) + row.settled
    return settled


def _end_of_batches(conn: Connection, place: Place, *, deep: bool) -> Iterator[Fault]:
    """Compare each shard's cursor with its batches: those of the pages, and those since."""
    for row in conn.execute(statements.SHARDS, {"after": place.after}):
        settled = place.settled.get(f"{row.shard} {row.epoch}", 0) + row.settled
        if row.settled_count != settled:
            detail = f"shard {row.shard}, epoch {row.epoch}: the cursor settled"
            detail += f" {row.settled_count} events, its batches {settled}"
            yield Fault(invariant=_ENDED_ONCE, detail=detail)
        if row.lost_count:
            yield loss_of(row.shard, row.epoch, row.lost_count)
    for check in _WHOLE if deep else ():
        yield from check(conn, {})


def _query(
    conn: Connection, page: Page, *, invariant: str, statement: TextClause
) -> Iterator[Fault]:
    """Run a query whose every row is a fault; its columns are the detail."""
    for row in conn.execute(statement, page):
        values = dict(row._mapping)  # noqa: SLF001
        wallet_id, entry_id = values.pop("wallet_id", None), values.pop("entry_id", None)
        yield Fault(
            invariant=invariant,
            detail=", ".join(f"{name} {value}" for name, value in values.items()),
            wallet_id=wallet_id,
            entry_id=entry_id,
        )


def _of(invariant: str, statement: TextClause) -> Check:
    return partial(_query, invariant=invariant, statement=statement)


_WALLETS: Final = _Stage(
    next=statements.NEXT_WALLETS,
    quick=(
        _of("a wallet stands where its last entry left it", statements.WALLETS_OFF_THEIR_ENTRIES),
        _of("balance = what is left in lots - debt", statements.WALLETS_OFF_THEIR_LOTS),
        _of("0 <= remainder < 1", statements.REMAINDERS_OUT_OF_RANGE),
        _of("alert numbers are without gaps", statements.ALERTS_WITH_GAPS),
    ),
    deep=(
        _of("balance = sum of entries, version = their number", statements.WALLETS_OFF_THEIR_SUM),
        _of("a lot = what is left + what it paid + what was taken", statements.LOTS_OFF_THEIR_USE),
        _of("debits are paid for once, without gaps", statements.COVERAGE_WITH_GAPS),
        _of("debits follow each other", statements.DEBITS_OFF_THEIR_LINE),
        _of("the lots of a debit sum to it", statements.ENTRIES_OFF_THEIR_ALLOCATIONS),
        walk_chain,
    ),
)
_PURCHASES: Final = _Stage(
    next=statements.NEXT_PURCHASES,
    quick=(_of("a credited purchase has its entry", statements.PURCHASES_OFF_THEIR_ENTRY),),
)
_CHECKOUTS: Final = _Stage(
    next=statements.NEXT_CHECKOUTS,
    quick=(
        _of("a checkout holds its credit or gave it back", statements.CHECKOUTS_OFF_THEIR_ENTRIES),
    ),
)
_BATCHES: Final = _Stage(next=statements.NEXT_BATCHES, rows=PAGE_BATCHES, first=0)
_STAGES: Final = (_WALLETS, _PURCHASES, _CHECKOUTS, _BATCHES)
# They read all rows of a table at once, whose keys no index finds by batch.
_WHOLE: Final = (
    _of("a usage entry costs what its events cost", statements.ENTRIES_OFF_THEIR_EVENTS),
    _of("each posted event holds a key", statements.BATCHES_OFF_THEIR_KEYS),
)
