"""The cost of an event meter by meter, computed with the meters and prices of a moment.

A stored event holds only its exact total, because each column costs time for every event.
The store does not know all of the past: see `list_meters_at`. The lines may add up to another sum;
the caller must show that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection

from metering.buffer.chunk import Metadata
from metering.clock import to_wire
from metering.errors import BadQuantityError
from metering.ids import BusinessId, Currency, MeterId
from metering.money import EXACT, ZERO
from metering.rate_card.card import CompiledMeter, compile_meters
from metering.rate_card.catalogue import Meter, Price, list_meters_at, list_prices_at


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
        self._meters = compile_meters(meters, prices)

    def lines(
        self, event_name: str, event_at: datetime, metadata: Metadata, currency: Currency
    ) -> list[Line]:
        """Return a line for each meter that the event adds to and that has a price at its time."""
        found = []
        for meter in self._meters.get(event_name, ()):
            if currency in meter.prices and (meter.matches is None or meter.matches(metadata)):
                quantity = _quantity(meter, metadata)
                price = meter.prices[currency].at(to_wire(event_at))
                if quantity and price is not None:
                    found.append(Line(meter.meter_id, meter.name, meter.unit, quantity, price))
        return found


def line_card(conn: Connection, business_id: BusinessId, at: datetime) -> LineCard:
    """Return the card of a business as it was at a moment."""
    return LineCard(list_meters_at(conn, business_id, at), list_prices_at(conn, business_id, at))


def _quantity(meter: CompiledMeter, metadata: Metadata) -> Decimal:
    try:
        return meter.quantity(metadata)
    except BadQuantityError:  # the meter did not price the event
        return ZERO


def total(lines: Sequence[Line]) -> Decimal:
    """Return the exact sum of lines."""
    cost = ZERO
    for line in lines:
        cost = EXACT.add(cost, line.cost)
    return cost
