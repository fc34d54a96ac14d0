"""When a failed attempt is tried again, and when it is given up. Pure."""

import math
from collections.abc import Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

# A delivery's attempts count on for ever, and a replay begins a new round at the next multiple of
# this: attempts 1, 2, 3 …; after a replay 101, 102, 103 …; so no number comes twice, and the place
# in the schedule is the number within its round.
ATTEMPTS_PER_ROUND: Final = 100
# Retries of many deliveries that failed together do not come back together.
JITTER: Final = 0.15
RETRY_AFTER_MAX_S: Final = 86_400


def retry_delay_s(
    attempt: int, schedule_s: Sequence[int], jitter: float, retry_after_s: float | None = None
) -> float | None:
    """Return the seconds from failed attempt `attempt` to the next one, or None: no more come.

    The schedule's step, spread by up to `JITTER` of itself (`jitter` is from -1 to 1); or, where
    that is longer, what the receiver asked for, up to a day.
    """
    tried = (attempt - 1) % ATTEMPTS_PER_ROUND + 1
    if tried > len(schedule_s):
        return None
    delay_s = schedule_s[tried - 1] * (1 + JITTER * jitter)
    return max(delay_s, float(min(retry_after_s or 0, RETRY_AFTER_MAX_S)))


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for (never below 0), or None: unreadable.

    The header holds seconds or a date.
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
