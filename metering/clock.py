"""Time: always aware, always UTC, and in one fixed-width text form that sorts as time does."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return this process's clock; what decides about money is the database's (`ledger.post`)."""
    return datetime.now(UTC)


def to_wire(moment: datetime) -> str:
    """Return `2026-01-31T09:30:00.000000Z`: 27 characters, so that text order is time order."""
    # isoformat takes two thirds of the time of strftime, and this is done once per event.
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:26] + "Z"


def from_wire(text: str) -> datetime:
    """Return the moment that `to_wire` wrote."""
    return datetime.fromisoformat(text)
