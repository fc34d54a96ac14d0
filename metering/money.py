"""Money: integers of minor units (cents, paise); exact decimals below them; never a float.

Quantities and prices are bounded so that a product of the two, and a sum of a million such
products, has fewer digits than `EXACT` keeps. The context traps `Inexact`: a sum that would lose
a digit raises instead of rounding, and a host program's own decimal context changes nothing here.
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

_DECIMAL_TEXT: Final = re.compile(r"[0-9]{1,13}(\.[0-9]{1,12})?", re.ASCII)


def quantity_of(value: object) -> Decimal | None:
    """Return a metered quantity, or None if `value` is not one.

    Taken: an integer, a double (its shortest decimal form, as its JSON text has it) or a plain
    decimal text, from 0 to `QUANTITY_MAX`, with up to `QUANTITY_DECIMALS_MAX` decimals.
    """
    if type(value) is int:  # almost always, so it goes first and without further looks
        return Decimal(value) if 0 <= value <= QUANTITY_MAX_INT else None
    if type(value) is float:
        quantity = Decimal(repr(value))
    elif type(value) is str and _DECIMAL_TEXT.fullmatch(value):
        quantity = Decimal(value)
    else:
        return None
    return quantity if _is_quantity(quantity) else None


def _is_quantity(quantity: Decimal) -> bool:
    if not quantity.is_finite() or not ZERO <= quantity <= QUANTITY_MAX:
        return False
    return type(exponent := quantity.as_tuple().exponent) is int and (
        exponent >= -QUANTITY_DECIMALS_MAX
    )


def split_minor(exact: Decimal) -> tuple[int, Decimal]:
    """Split an exact amount ≥ 0 into whole minor units (floor) and the remainder, 0 ≤ r < 1."""
    whole = int(exact)
    return whole, EXACT.subtract(exact, Decimal(whole))


def plain(value: Decimal) -> str:
    """Write a decimal without an exponent and without trailing zeros: `0.0000125`, `3`."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
