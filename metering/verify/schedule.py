"""The scheduled walk: a short slice at a time. Its place is kept in Postgres.

A slice that dies is done again, by any process. Alert on the age of the last complete walk.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from time import monotonic

import orjson
from sqlalchemy import Connection

from metering.db import Transactions
from metering.invariants import Fault
from metering.verify import statements
from metering.verify.accepted import accepted_faults
from metering.verify.walk import Place, step


@dataclass(slots=True)
class Slice:
    """The result of a slice: its faults, the count now, and when the last walk was complete."""

    pages: int = 0
    faults: Sequence[Fault] = field(default_factory=list)
    fault_count: int = 0
    completed_at: datetime | None = None


def continue_walk(snapshot: Transactions, since: int, slice_ms: int) -> Slice:
    """Continue the current walk for `slice_ms`, or begin one that is due.

    A walk is due an hour after the last one began, and if that was before `since` (Unix time).
    """
    with snapshot() as conn:
        if conn.execute(statements.TRY_WALK).scalar_one():
            row = conn.execute(statements.WALK, {"since": since}).one()
            if row.place is not None or row.is_due:
                return _walk(conn, _begin(conn, row.place), slice_ms)
        return _with_last(conn, Slice())


def _begin(conn: Connection, place: dict[str, object] | None) -> Place:
    if place is not None:
        return Place(**place)  # type: ignore[arg-type]  # as `_walk` wrote it
    conn.execute(statements.BEGIN_WALK)
    return Place()


def _walk(conn: Connection, place: Place, slice_ms: int) -> Slice:
    """Check page after page: at least one, so that every slice is progress."""
    accepted = {fault.fault_id for fault in accepted_faults(conn)}
    ends_at, pages, found = monotonic() + slice_ms / 1000, 0, list[Fault]()
    following: Place | None = place
    while following is not None and (not pages or monotonic() < ends_at):
        faults, following = step(conn, following, deep=False)
        found += [fault for fault in faults if fault.fault_id not in accepted]
        pages += 1
    if following is None:
        conn.execute(statements.END_WALK, {"found": len(found)})
    else:
        stored = orjson.dumps(asdict(following)).decode()
        conn.execute(statements.LEAVE_WALK, {"place": stored, "found": len(found)})
    return _with_last(conn, Slice(pages=pages, faults=found))


def _with_last(conn: Connection, done: Slice) -> Slice:
    row = conn.execute(statements.WALK, {"since": 0}).one()
    done.completed_at = row.completed_at
    # A new fault counts at once. A fault that is gone counts until a walk is complete without it.
    done.fault_count = max(row.completed_fault_count, row.fault_count)
    return done
