"""Time: always aware, always UTC, and in one fixed-width text form that sorts as time does."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return this process's clock; what decides about money is the database's (`ledger.post`)."""
    return datetime.now(UTC)


def to_wire(moment: datetime) -> str:
    """Return `2026-01-31T09:30:00.000000Z`: 27 characters, so that text order is time order."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def from_wire(text: str) -> datetime:
    """Return the moment that `to_wire` wrote."""
    return datetime.fromisoformat(text)
