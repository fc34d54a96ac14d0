"""How much a top-up may buy, and the bounds of a day and a month."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.money import INT64_MAX
from metering.payment.top_ups.caps import day_of, month_of, order_for

INDIA = timezone(timedelta(hours=5, minutes=30))
MOMENTS = st.datetimes(
    min_value=datetime(1970, 1, 2),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(2200, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, INDIA, timezone(timedelta(hours=-11))]),
)


def utc(year: int, month: int, day: int, *time: int) -> datetime:
    return datetime(year, month, day, *time, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("moment", "day", "month"),
    [
        (utc(2028, 2, 28, 23, 59, 59), (28, utc(2028, 2, 29)), utc(2028, 3, 1)),
        (utc(2028, 2, 29), (29, utc(2028, 3, 1)), utc(2028, 3, 1)),
        (utc(2026, 2, 28, 12), (28, utc(2026, 3, 1)), utc(2026, 3, 1)),
        (utc(2026, 12, 31, 23, 59, 59, 999_999), (31, utc(2027, 1, 1)), utc(2027, 1, 1)),
        # In India it is the 1st already, in UTC still the 31st.
        (datetime(2026, 2, 1, 5, 29, tzinfo=INDIA), (31, utc(2026, 2, 1)), utc(2026, 2, 1)),
    ],
)
def test_days_and_months_follow_the_utc_calendar(
    moment: datetime, day: tuple[int, datetime], month: datetime
) -> None:
    assert (day_of(moment).start.day, day_of(moment).end) == day
    assert (month_of(moment).start.day, month_of(moment).end) == (1, month)


@given(MOMENTS)
def test_every_moment_is_in_its_day_and_its_day_in_its_month(moment: datetime) -> None:
    day, month = day_of(moment), month_of(moment)

    assert month.start <= day.start <= moment < day.end <= month.end
    assert day.end - day.start == timedelta(days=1)


@pytest.mark.parametrize(
    ("lacking", "packages"), [(0, 1), (1, 1), (499, 1), (500, 2), (999, 2), (1000, 3)]
)
def test_a_top_up_orders_enough_packages_to_lift_the_wallet_above_the_threshold(
    lacking: int, packages: int
) -> None:
    ordered = order_for(
        lacking, price_minor=400, credit_minor=500, day_left=10_000, month_left=10_000
    )

    assert ordered == (packages, None)


@pytest.mark.parametrize(
    ("day_left", "month_left", "ordered"),
    [
        (400, 400, (1, None)),
        (799, 10_000, (1, None)),
        (800, 10_000, (2, None)),
        (399, 10_000, (0, "day")),
        (10_000, 399, (0, "month")),
        (0, 0, (0, "month")),
        (-400, 10_000, (0, "day")),
    ],
)
def test_a_top_up_stays_within_the_caps(
    day_left: int, month_left: int, ordered: tuple[int, str | None]
) -> None:
    found = order_for(
        5000, price_minor=400, credit_minor=500, day_left=day_left, month_left=month_left
    )

    assert found == ordered


@pytest.mark.parametrize(
    ("room", "ordered"),
    [(1000, (2, None)), (999, (1, None)), (499, (0, "wallet")), (-1, (0, "wallet"))],
)
def test_a_top_up_stays_within_the_limit_of_the_wallet(
    room: int, ordered: tuple[int, str | None]
) -> None:
    found = order_for(
        5000, price_minor=400, credit_minor=500, day_left=10_000, month_left=10_000, room_minor=room
    )

    assert found == ordered


@given(
    st.integers(0, 2 * INT64_MAX),
    st.integers(1, INT64_MAX),
    st.integers(1, INT64_MAX),
    st.integers(-INT64_MAX, INT64_MAX),
    st.integers(-INT64_MAX, INT64_MAX),
)
def test_every_order_is_within_the_caps_and_fits_the_wallet(
    lacking: int, price: int, credit: int, day_left: int, month_left: int
) -> None:
    packages, cap = order_for(
        lacking, price_minor=price, credit_minor=credit, day_left=day_left, month_left=month_left
    )

    assert (packages == 0) == (cap is not None)
    if packages:
        assert packages * price <= min(day_left, month_left)
        assert packages * credit <= INT64_MAX
        assert (packages - 1) * credit <= lacking
