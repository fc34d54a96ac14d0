"""The retry schedule: its steps, their jitter, and `Retry-After` of a receiver."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import ConfigurationError
from metering.webhook.deliver import DeliveryPolicy
from metering.webhook.retry import (
    ATTEMPTS_PER_ROUND,
    JITTER,
    RETRY_AFTER_MAX_S,
    parse_retry_after,
    retry_delay_s,
)

SCHEDULE_S = (5, 300, 1800, 7200, 18_000, 36_000, 36_000)
NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)

schedules = st.lists(st.integers(1, 86_400), min_size=0, max_size=ATTEMPTS_PER_ROUND - 1)
jitters = st.floats(-1, 1)


def test_without_jitter_the_waits_are_the_schedule() -> None:
    waits = [retry_delay_s(attempt, SCHEDULE_S, 0) for attempt in range(1, 9)]

    assert waits == [*SCHEDULE_S, None]


@given(schedules, jitters, st.integers(0, 50))
def test_every_round_has_the_whole_schedule(
    schedule_s: list[int], jitter: float, replays: int
) -> None:
    first = replays * ATTEMPTS_PER_ROUND + 1
    waits = [
        retry_delay_s(attempt, schedule_s, jitter)
        for attempt in range(first, first + len(schedule_s))
    ]

    for wait_s, step_s in zip(waits, schedule_s, strict=True):
        assert wait_s is not None
        assert abs(wait_s - step_s) <= step_s * JITTER * 1.000001
    assert retry_delay_s(first + len(schedule_s), schedule_s, jitter) is None


def test_the_last_number_of_a_round_is_beyond_every_schedule() -> None:
    assert retry_delay_s(ATTEMPTS_PER_ROUND, SCHEDULE_S, 0) is None


@given(jitters, st.floats(0, 10 * RETRY_AFTER_MAX_S), st.integers(1, len(SCHEDULE_S)))
def test_retry_after_makes_a_wait_longer_but_at_most_a_day(
    jitter: float, retry_after_s: float, attempt: int
) -> None:
    plain = retry_delay_s(attempt, SCHEDULE_S, jitter)
    delay_s = retry_delay_s(attempt, SCHEDULE_S, jitter, retry_after_s)

    assert plain is not None
    assert delay_s is not None
    assert delay_s == max(plain, min(retry_after_s, RETRY_AFTER_MAX_S))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("9" * 400, 9_999_999_999),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(days=9), usegmt=True), 0),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("٣", None),
        ("Sat, 31 Jan 2026 09:30:00", None),
        ("Sat, 99 Jan 2026 09:30:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@given(st.text(max_size=60))
def test_no_value_of_retry_after_raises(value: str) -> None:
    parsed = parse_retry_after(value, NOW)

    assert parsed is None or parsed >= 0


def test_a_schedule_longer_than_a_round_is_refused() -> None:
    DeliveryPolicy(retry_s=(1,) * (ATTEMPTS_PER_ROUND - 1), timeout_s=15, disable_after=50)
    with pytest.raises(ConfigurationError):
        DeliveryPolicy(retry_s=(1,) * ATTEMPTS_PER_ROUND, timeout_s=15, disable_after=50)
