"""Durations in messages are in the units in which people think."""

import pytest

from metering.clock import spoken


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (1.5, "1.5 seconds"),
        (90, "1 minute 30 seconds"),
        (300, "5 minutes"),
        (7200.0, "2 hours"),
        (86_461, "1 day 1 minute 1 second"),
        (3_024_000, "35 days"),
    ],
)
def test_a_duration_is_said_in_days_hours_minutes_and_seconds(seconds: float, said: str) -> None:
    assert spoken(seconds) == said
