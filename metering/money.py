"""Money: integers of minor units (cents, paise); exact decimals below them; never a float.

Quantities and prices are bounded so that a product of the two, and a sum of a million such
products, has fewer digits than `EXACT` keeps. The context traps `Inexact`: a sum that would lose
a digit raises instead of rounding, and a host program's own decimal context changes nothing here.

There is one rounding, before any sum: a quantity keeps 12 decimals, half to even. Programs that
add doubles need it: 0.1 + 0.2 has 17 decimals.
"""

import re
from decimal import (
    ROUND_HALF_EVEN,
    Clamped,
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
)
from typing import Final

INT64_MAX: Final = 2**63 - 1
QUANTITY_MAX: Final = Decimal(10**12)
QUANTITY_DECIMALS_MAX: Final = 12
QUANTITY_MAX_INT: Final = int(QUANTITY_MAX)
PRICE_INTEGER_DIGITS_MAX: Final = 5
PRICE_DECIMALS_MAX: Final = 12
UNIT_PRICE_DECIMALS_MAX: Final = 21
UNITS_MAX: Final = 10**9
# Nothing is ever rounded, so the mode only decides the sign of a zero: floor would give x - x = -0.
# 13 + 5 integer digits and 12 + 21 decimals per product, and room for the sum of a long history.
EXACT: Final = Context(
    prec=80,
    rounding=ROUND_HALF_EVEN,
    traps=[Clamped, DivisionByZero, Inexact, InvalidOperation, Overflow],
)
ZERO: Final = Decimal(0)

_DECIMAL_TEXT: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_QUANTITY_GRAIN: Final = Decimal(1).scaleb(-QUANTITY_DECIMALS_MAX)
_ROUNDING: Final = Context(prec=80, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])


def quantity_of(value: object) -> Decimal | None:
    """Return a metered quantity, or None if `value` is not one.

    Taken: an integer, a double (its shortest decimal form, as its JSON text has it) or the text of
    a number, from 0 to `QUANTITY_MAX`. Decimals after the twelfth are rounded, half to even.
    """
    if type(value) is int:  # the usual case, so it is checked first
        return Decimal(value) if 0 <= value <= QUANTITY_MAX_INT else None
    number = _number_of(value)
    if number is None or not ZERO <= number <= QUANTITY_MAX:
        return None
    return number if _decimals(number) <= QUANTITY_DECIMALS_MAX else _rounded(number)


def quantity_problem(value: object) -> str:
    """Return why `quantity_of` does not take a value: one text for the edge and the drain."""
    number = Decimal(value) if type(value) is int else _number_of(value)
    if number is None:
        return "is not a number"
    return "is negative" if number < ZERO else f"is above {plain(QUANTITY_MAX)}"


def _number_of(value: object) -> Decimal | None:
    """Return the finite number of a double or a text; None for a bool and everything else."""
    if type(value) is float:
        number = Decimal(repr(value))
        return number if number.is_finite() else None
    if type(value) is str and _DECIMAL_TEXT.fullmatch(value):
        return Decimal(value)
    return None


def _decimals(number: Decimal) -> int:
    return -int(number.as_tuple().exponent)


def _rounded(number: Decimal) -> Decimal:
    return _ROUNDING.quantize(number, _QUANTITY_GRAIN)


def split_minor(exact: Decimal) -> tuple[int, Decimal]:
    """Split an exact amount ≥ 0 into whole minor units (floor) and the remainder, 0 ≤ r < 1."""
    whole = int(exact)
    return whole, EXACT.subtract(exact, Decimal(whole))


def plain(value: Decimal) -> str:
    """Write a decimal without an exponent and without trailing zeros: `0.0000125`, `3`."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
