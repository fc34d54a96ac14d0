"""Every invariant of the ledger, by name: looked up, never repaired. A fix is a new entry.

`find_faults` walks all of it in one snapshot; `continue_walk` does a slice of it at a time.
"""

from collections.abc import Iterator

from sqlalchemy import Connection

from metering.ledger.verify.fault import Fault, loss_of
from metering.ledger.verify.walk import Place, step

__all__ = ["Fault", "find_faults", "loss_of"]


def find_faults(conn: Connection, *, deep: bool = True) -> Iterator[Fault]:
    """Yield every fault; `deep` walks all entries and counts all event keys as well.

    `conn` is a snapshot (`REPEATABLE READ`).
    """
    place: Place | None = Place()
    while place is not None:
        faults, place = step(conn, place, deep=deep)
        yield from faults
