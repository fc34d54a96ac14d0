"""Runs the invariants of all packages. It finds faults and repairs none: a fix is a new entry.

`find_faults` checks everything in one snapshot; `schedule.continue_walk` does a slice at a time.
"""

from collections.abc import Iterator

from sqlalchemy import Connection

from metering.invariants import Fault
from metering.verify.walk import Place, step


def find_faults(conn: Connection, *, deep: bool = True) -> Iterator[Fault]:
    """Yield every fault. `deep` also walks all entries and counts all event keys.

    `conn` is a snapshot (REPEATABLE READ).
    """
    place: Place | None = Place()
    while place is not None:
        faults, place = step(conn, place, deep=deep)
        yield from faults
