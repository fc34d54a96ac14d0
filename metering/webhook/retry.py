"""When a failed attempt is repeated, and when the delivery is given up. Pure."""

import math
from collections.abc import Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

# The attempts of a delivery are numbered 1, 2, 3 … A replay begins a new round at the next multiple
# of this: 101, 102, 103 … So no number repeats, and the number within the round is the place in
# the schedule.
ATTEMPTS_PER_ROUND: Final = 100
# Spreads the retries of many deliveries that failed together.
JITTER: Final = 0.15
RETRY_AFTER_MAX_S: Final = 86_400


def retry_delay_s(
    attempt: int, schedule_s: Sequence[int], jitter: float, retry_after_s: float | None = None
) -> float | None:
    """Return the seconds from failed attempt `attempt` to the next. Returns None if none follows.

    It is the step of the schedule, spread by up to `JITTER` of itself (`jitter` is from -1 to 1),
    or the time that the receiver asks for, up to a day, if that is longer.
    """
    tried = (attempt - 1) % ATTEMPTS_PER_ROUND + 1
    if tried > len(schedule_s):
        return None
    delay_s = schedule_s[tried - 1] * (1 + JITTER * jitter)
    return max(delay_s, float(min(retry_after_s or 0, RETRY_AFTER_MAX_S)))


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Return the seconds, 0 or more, that a Retry-After header asks for by number or by date.

    Returns None if it cannot be read.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:10])
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return max(0.0, math.ceil((moment - now).total_seconds()))
