"""Amounts that a provider writes without saying in which unit."""

import re
from typing import Final

from metering.money import INT64_MAX

_DIGITS: Final = re.compile(r"[0-9]{1,40}", re.ASCII)


def minor_of(amount: object) -> int | None:
    """Return the minor units that an amount names, None if it is none above zero or is unclear.

    A whole number counts minor units, as a number and as text. One with a point could be of either
    unit, so nobody guesses. More than 64 bits hold is as much as they hold.
    """
    if isinstance(amount, str) and _DIGITS.fullmatch(amount):
        amount = int(amount)
    if not isinstance(amount, int) or isinstance(amount, bool) or amount <= 0:
        return None
    return min(amount, INT64_MAX)
