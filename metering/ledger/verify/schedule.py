"""The walk that goes on by itself: a short slice at a time, so that none is ever too long.

Where it stands is kept in Postgres. A slice that dies is done again; a process that starts goes on
where another has stopped. How long ago the last walk was complete is what to alert on.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from time import monotonic

import orjson
from sqlalchemy import Connection

from metering.db import Transactions
from metering.ledger.verify import statements
from metering.ledger.verify.accepted import accepted_faults
from metering.ledger.verify.fault import Fault
from metering.ledger.verify.walk import Place, step


@dataclass(slots=True)
class Slice:
    """What a slice did, and what is known since the last complete walk, which ended then."""

    pages: int = 0
    faults: Sequence[Fault] = field(default_factory=list)
    fault_count: int = 0
    completed_at: datetime | None = None


def continue_walk(snapshot: Transactions, since: int, slice_ms: int) -> Slice:
    """Go on with the walk under way for `slice_ms`, or begin one that is due.

    One is due an hour after the last began, and when the last began before `since` (Unix time).
    """
    with snapshot() as conn:
        if conn.execute(statements.TRY_WALK).scalar_one():
            row = conn.execute(statements.WALK, {"since": since}).one()
            if row.place is not None or row.is_due:
                return _walk(conn, _begun(conn, row.place), slice_ms)
        return _last(conn, Slice())


def _begun(conn: Connection, place: dict[str, object] | None) -> Place:
    if place is not None:
        return Place(**place)  # type: ignore[arg-type]  # as `_walk` wrote it
    conn.execute(statements.BEGIN_WALK)
    return Place()


def _walk(conn: Connection, begun: Place, slice_ms: int) -> Slice:
    """Check page after page; at least one, so that every slice is progress."""
    known = {fault.fault_id for fault in accepted_faults(conn)}
    ends_at, place, pages, found = monotonic() + slice_ms / 1000, begun, 0, list[Fault]()
    following: Place | None = begun
    while following is not None and (not pages or monotonic() < ends_at):
        place, pages = following, pages + 1
        faults, following = step(conn, place, deep=False)
        found += [fault for fault in faults if fault.fault_id not in known]
    if following is None:
        conn.execute(statements.END_WALK, {"found": len(found)})
    else:
        kept = orjson.dumps(asdict(following)).decode()
        conn.execute(statements.LEAVE_WALK, {"place": kept, "found": len(found)})
    return _last(conn, Slice(pages=pages, faults=found))


def _last(conn: Connection, done: Slice) -> Slice:
    row = conn.execute(statements.WALK, {"since": 0}).one()
    done.completed_at = row.completed_at
    # A fault found counts at once; one that is gone counts until a walk is complete without it.
    done.fault_count = max(row.completed_fault_count, row.fault_count)
    return done
