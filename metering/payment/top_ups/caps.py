"""How much a top-up buys: enough to rise above the threshold, within the caps of day and month.

Days and months are calendar ones in UTC. Pure, so that each boundary can be tested.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from metering.money import INT64_MAX


class Span(NamedTuple):
    """A time span; `end` is not part of it."""

    start: datetime
    end: datetime


class Order(NamedTuple):
    """How many packages to buy. `cap`: the limit that allows none."""

    packages: int
    cap: Literal["day", "month", "wallet"] | None


def day_of(moment: datetime) -> Span:
    """Return the day of a moment."""
    utc = moment.astimezone(UTC)
    start = datetime(utc.year, utc.month, utc.day, tzinfo=UTC)
    return Span(start, start + timedelta(days=1))


def month_of(moment: datetime) -> Span:
    """Return the month of a moment."""
    utc = moment.astimezone(UTC)
    start = datetime(utc.year, utc.month, 1, tzinfo=UTC)
    months = utc.year * 12 + utc.month  # the next month, counted from 0
    return Span(start, datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC))


def order_for(
    lacking_minor: int,
    *,
    price_minor: int,
    credit_minor: int,
    day_left: int,
    month_left: int,
    room_minor: int = INT64_MAX,
) -> Order:
    """Return how many packages lift a wallet above its threshold, as far as the caps allow.

    `lacking_minor` >= 0: how far the wallet is below the threshold. `room_minor`: how much more
    credit the wallet can hold. If both caps allow none, the month is named: it lasts longer.
    """
    needed = lacking_minor // credit_minor + 1
    in_day, in_month = max(0, day_left) // price_minor, max(0, month_left) // price_minor
    packages = min(needed, in_day, in_month, max(0, room_minor) // credit_minor)
    if packages:
        return Order(packages, None)
    if in_day and in_month:
        return Order(0, "wallet")
    return Order(0, "day" if in_month else "month")
