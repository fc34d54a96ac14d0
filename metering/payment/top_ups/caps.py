"""How much a top-up may buy: enough to rise above the threshold, within a day and a month.

Days and months are those of the calendar in UTC: pure, so that each boundary can be tested.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from metering.money import INT64_MAX


class Span(NamedTuple):
    """From a moment on, up to another one."""

    start: datetime
    end: datetime


class Order(NamedTuple):
    """So many packages; none, where a cap or what the wallet can hold allows none."""

    packages: int
    cap: Literal["day", "month", "wallet"] | None


def day_of(moment: datetime) -> Span:
    """Return the day that a moment is in."""
    here = moment.astimezone(UTC)
    start = datetime(here.year, here.month, here.day, tzinfo=UTC)
    return Span(start, start + timedelta(days=1))


def month_of(moment: datetime) -> Span:
    """Return the month that a moment is in."""
    here = moment.astimezone(UTC)
    start = datetime(here.year, here.month, 1, tzinfo=UTC)
    months = here.year * 12 + here.month  # the next month, counted from 0
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
    """Return how many packages make up for what a wallet lacks, as far as the caps allow.

    `lacking_minor` >= 0: how far it lies below the threshold, which it is to rise above. The month
    is named where both caps allow none: it is the one that lasts. `room_minor`: how much credit the
    wallet can still take; what it could not hold must not be charged.
    """
    needed = lacking_minor // credit_minor + 1
    in_day, in_month = max(0, day_left) // price_minor, max(0, month_left) // price_minor
    packages = min(needed, in_day, in_month, max(0, room_minor) // credit_minor)
    if packages:
        return Order(packages, None)
    if in_day and in_month:
        return Order(0, "wallet")
    return Order(0, "day" if in_month else "month")
