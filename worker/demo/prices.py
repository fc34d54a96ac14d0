"""What the demo's product sells, and what that costs, worked out without the rate card.

Fractions, not the product's own decimals: two ways to the same figure that share no code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

REQUEST: Final = "llm.request"
LARGE: Final = "large"
CURRENCIES: Final = ("USD", "INR")
_DECIMALS_MAX: Final = 30


@dataclass(frozen=True, slots=True)
class Item:
    """A meter and its prices: minor units per `units`, by currency.

    `summed`: the property that is summed; None counts requests of `model`.
    """

    name: str
    summed: str | None
    model: str | None
    units: int
    prices: Mapping[str, str]

    def unit_price(self, currency: str) -> Fraction:
        """Return minor units for one unit."""
        return Fraction(self.prices[currency]) / self.units


# Cents and paise with decimals: hardly any request costs a whole number of them.
PRICE_LIST: Final = (
    Item("input tokens", "input_tokens", None, 1000, {"USD": "0.2875", "INR": "24.1125"}),
    Item("output tokens", "output_tokens", None, 1000, {"USD": "1.4375", "INR": "119.3875"}),
    Item("large model", None, LARGE, 1, {"USD": "0.0625", "INR": "5.125"}),
)


@dataclass(slots=True)
class Usage:
    """What one customer used, by item of the price list."""

    units: dict[str, int] = field(default_factory=lambda: {item.name: 0 for item in PRICE_LIST})

    def add(self, metadata: Mapping[str, object]) -> None:
        """Count one request, whose token counts are integers."""
        for item in PRICE_LIST:
            if item.summed is None:
                self.units[item.name] += metadata.get("model") == item.model
            else:
                self.units[item.name] += int(str(metadata[item.summed]))

    def cost(self, currency: str) -> Fraction:
        """Return the exact cost in minor units."""
        return sum(
            (self.units[item.name] * item.unit_price(currency) for item in PRICE_LIST), Fraction(0)
        )


def plain_fraction(value: Fraction) -> str:
    """Write a fraction whose decimals end, in full: `-12.0375`.

    Raises:
        ValueError: they do not end within 30 places.

    """
    for places in range(_DECIMALS_MAX + 1):
        scaled = value * 10**places
        if scaled.denominator == 1:
            sign = "-" if scaled < 0 else ""
            digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
            whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
            return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"
    raise ValueError(f"{value} has endless decimals")


def price_list_json() -> list[dict[str, object]]:
    """Return the price list as it stands in the demo's JSON: one object per item and currency."""
    return [
        {
            "meter": item.name,
            "event_name": REQUEST,
            "summed": item.summed,
            "model": item.model,
            "currency": currency,
            "price_per_unit": price,
            "units": item.units,
        }
        for item in PRICE_LIST
        for currency, price in item.prices.items()
    ]
