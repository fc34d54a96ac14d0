"""The cost of an event meter by meter, computed with the present meters and prices.

Kept usage holds only the exact total of each event, because every event pays for what is stored. If
a meter or price has changed since, the lines add up to another sum; the caller must show that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection

from metering.buffer.chunk import Metadata
from metering.ids import BusinessId, Currency, MeterId
from metering.money import EXACT, ZERO, quantity_of
from metering.rate_card.catalogue import Meter, Price, list_meters, list_prices
from metering.rate_card.filter import Matches, compile_filter

_ONE: Final = Decimal(1)


@dataclass(frozen=True, slots=True)
class Line:
    """A quantity of a meter's unit, and the price of one unit in minor units."""

    meter_id: MeterId
    meter_name: str
    unit: str
    quantity: Decimal
    unit_price: Decimal

    @property
    def cost(self) -> Decimal:
        """The cost in minor units, exact."""
        return EXACT.multiply(self.quantity, self.unit_price)


class LineCard:
    """The meters of a business with their prices, for single events."""

    def __init__(self, meters: Iterable[Meter], prices: Iterable[Price]) -> None:
        self._meters: dict[str, list[tuple[Meter, Matches | None]]] = {}
        for meter in meters:
            if meter.archived_at is None:
                matches = None if meter.filter is None else compile_filter(meter.filter)
                self._meters.setdefault(meter.event_name, []).append((meter, matches))
        self._prices: dict[tuple[MeterId, Currency], list[Price]] = {}
        for price in prices:
            self._prices.setdefault((price.meter_id, price.currency), []).append(price)

    def lines(
        self, event_name: str, event_at: datetime, metadata: Metadata, currency: Currency
    ) -> list[Line]:
        """Return a line for each meter that the event adds to and that has a price at its time."""
        found = []
        for meter, matches in self._meters.get(event_name, ()):
            quantity = _quantity(meter, metadata)
            price = self._price_at(meter.meter_id, currency, event_at)
            if quantity and price is not None and (matches is None or matches(metadata)):
                unit = meter.measurement_unit
                found.append(Line(meter.meter_id, meter.name, unit, quantity, price.unit_price))
        return found

    def _price_at(self, meter_id: MeterId, currency: Currency, at: datetime) -> Price | None:
        prices = self._prices.get((meter_id, currency), ())
        begun = [price for price in prices if price.effective_from <= at]
        return max(begun, key=lambda price: price.effective_from, default=None)


def line_card(conn: Connection, business_id: BusinessId) -> LineCard:
    """Return the present card of a business."""
    return LineCard(list_meters(conn, business_id), list_prices(conn, business_id))


def _quantity(meter: Meter, metadata: Metadata) -> Decimal:
    if meter.aggregation.key is None:
        return _ONE
    return quantity_of(metadata.get(meter.aggregation.key, 0)) or ZERO


def total(lines: Sequence[Line]) -> Decimal:
    """Return the exact sum of lines."""
    cost = ZERO
    for line in lines:
        cost = EXACT.add(cost, line.cost)
    return cost
