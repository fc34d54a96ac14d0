"""The compiled rate card of a business: from an event to its exact cost.

A card is compiled once per change and called once per event, so it holds plain tuples and closures.
Times are compared as fixed-width text, without parsing.

The currency is the customer's billing currency, if it has one. Otherwise it is the first configured
one in which all priced meters of the event have a price at its time.

Nothing is free by omission. An event is refused if no meter measures it, or if it adds to a meter
without a price at its time, unless the business keeps such events. A price of 0 is a price: a meter
that only measures has one.
"""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal, NamedTuple

from metering.buffer.chunk import Metadata
from metering.clock import to_wire
from metering.errors import BadQuantityError, NoPriceError, UnmeteredError, UnpricedEventError
from metering.ids import Currency, MeterId, PriceId
from metering.money import EXACT, QUANTITY_MAX_INT, ZERO, quantity_of, quantity_problem
from metering.rate_card.catalogue import Meter, Price
from metering.rate_card.filter import compile_filter

ONE: Final = Decimal(1)

OnUnmetered = Literal["refuse", "keep_free"]


class Cost(NamedTuple):
    """The exact cost of an event: `mantissa` times 10^-`scale` minor units.

    Without a currency nothing is charged. `gap` says why an event that its business keeps costs
    nothing, or not all that it should. Integers are ten times as fast as decimals.
    """

    currency: Currency | None
    mantissa: int
    scale: int
    gap: UnpricedEventError | None = None


def exact_cost(mantissa: int, scale: int) -> Decimal:
    """Return `mantissa` times 10^-`scale` without rounding."""
    return EXACT.scaleb(Decimal(mantissa), -scale)


@dataclass(frozen=True, slots=True)
class Timeline:
    """The prices of a meter in one currency: moments (wire form, ascending) and unit prices.

    A unit price of None says that no price is in force from that moment on.
    """

    starts: tuple[str, ...]
    unit_prices: tuple[Decimal | None, ...]

    def at(self, event_at: str) -> Decimal | None:
        """Return the unit price in force. Returns None if there is none."""
        if event_at >= self.starts[-1]:  # the newest: almost always
            return self.unit_prices[-1]
        index = bisect_right(self.starts, event_at)
        return self.unit_prices[index - 1] if index else None


@dataclass(frozen=True, slots=True)
class CompiledMeter:
    """A meter ready to be applied; it counts events if `summed` is None."""

    meter_id: MeterId
    name: str
    unit: str
    summed: str | None
    matches: Callable[[Metadata], bool] | None
    prices: dict[Currency, Timeline]

    def quantity(self, metadata: Metadata) -> Decimal:
        """Return the quantity that the event adds: 0 without the summed property.

        Raises: BadQuantityError if the summed property is not a quantity.
        """
        if self.summed is None:
            return ONE
        quantity = quantity_of(value := metadata.get(self.summed, 0))
        if quantity is None:
            problem = quantity_problem(value)
            raise BadQuantityError(f"property {self.summed!r} is {value!r}: it {problem}")
        return quantity

    def measures(self, metadata: Metadata) -> bool:
        """Tell whether the event has the summed property, or needs none."""
        return self.summed is None or self.summed in metadata


class PlainLine(NamedTuple):
    """The part of one meter in a cost: its summed property times a price of the common scale."""

    summed: str | None
    newest_price: int


class Plain(NamedTuple):
    """The lines of an event name without filters, in one currency, at a common scale.

    `newest` is the moment from which all of these prices are in force; older events are not plain.
    """

    lines: tuple[PlainLine, ...]
    scale: int
    newest: str

    def measures(self, metadata: Metadata) -> bool:
        """Tell whether the event has a property that one of the meters sums, or needs none."""
        return any(summed is None or summed in metadata for summed, _price in self.lines)


class RateCard:
    """The meters and prices of one business at one version."""

    def __init__(
        self,
        meters: Iterable[Meter],
        prices: Iterable[Price],
        currencies: Sequence[Currency],
        on_unmetered: OnUnmetered = "refuse",
    ) -> None:
        self._currencies = tuple(currencies)
        self._keeps_free = on_unmetered == "keep_free"
        self._by_event_name = compile_meters(meters, prices)
        # Event names whose meters have no filters and share a currency. This is most traffic, and
        # the few lines of the cost are the same for every event.
        self._plain = {
            (name, currency): plain
            for name, found in self._by_event_name.items()
            for currency in self._currencies
            if (plain := _plain(found, currency)) is not None
        }

    def cost(self, name: str, event_at: str, metadata: Metadata, billing: Currency | None) -> Cost:
        """Return the cost of an event.

        Raises:
            BadQuantityError: a summed property is not a quantity, or the event has none of them.
            UnmeteredError: no meter measures it, and the business refuses such events.
            NoPriceError: a meter that it adds to has no price at its time, and the business
                refuses such events; or its meters have no price in a currency that applies.

        """
        currency = billing or self._currencies[0]
        plain = self._plain.get((name, currency))
        if plain is not None and event_at >= plain.newest:
            mantissa = 0
            for summed, price in plain.lines:
                quantity = 1 if summed is None else metadata.get(summed, 0)
                if type(quantity) is not int or not 0 <= quantity <= QUANTITY_MAX_INT:
                    break  # a fraction or a text: rare, and not computed in integers
                mantissa += quantity * price
            else:
                if mantissa or plain.measures(metadata):
                    # `tuple.__new__` takes half the time of the generated constructor.
                    return tuple.__new__(Cost, (currency, mantissa, plain.scale, None))
        return self._cost_by_meter(name, event_at, metadata, billing)

    def _cost_by_meter(
        self, name: str, event_at: str, metadata: Metadata, billing: Currency | None
    ) -> Cost:
        meters = [
            meter
            for meter in self._by_event_name.get(name, ())
            if meter.matches is None or meter.matches(metadata)
        ]
        priced = [meter for meter in meters if meter.prices]
        if priced:
            currency = self._currencies_of(priced, billing)[0]
            total, unpriced = _total(priced, currency, event_at, metadata)
            if total and unpriced is None and len(priced) == len(meters):
                return _cost(currency, total)
        # Now tell an omission from a price or a quantity of 0.
        if not meters:
            has_meters = name in self._by_event_name
            return self._gap(UnmeteredError(_unmetered(name, has_meters=has_meters)))
        _check_quantities(meters, metadata)
        if not any(meter.measures(metadata) for meter in priced):
            at_fault = next(meter.meter_id for meter in meters if meter.measures(metadata))
            return self._gap(_without_price(at_fault))
        cost = self._cost_in_some_currency(priced, event_at, metadata, billing)
        for meter in meters:
            if not meter.prices and meter.quantity(metadata):
                return self._gap(_without_price(meter.meter_id), cost)
        return cost

    def _cost_in_some_currency(
        self,
        priced: Sequence[CompiledMeter],
        event_at: str,
        metadata: Metadata,
        billing: Currency | None,
    ) -> Cost:
        """Return the cost in the first currency in which no meter lacks a price."""
        currencies = self._currencies_of(priced, billing)
        totals = [(code, *_total(priced, code, event_at, metadata)) for code in currencies]
        for currency, total, unpriced in totals:
            if unpriced is None:
                return _cost(currency, total)
        currency, total, unpriced = totals[0]
        at_fault = unpriced.meter_id if unpriced else None
        reason = f"the meter {at_fault} has no {currency} price at {event_at}"
        return self._gap(NoPriceError(reason, at_fault), _cost(currency, total))

    def _gap(self, error: UnpricedEventError, kept: Cost | None = None) -> Cost:
        """Return the cost of an event with a gap, or refuse it if the business does not keep it."""
        if not self._keeps_free:
            raise error
        if kept is None or not kept.mantissa:
            return Cost(None, 0, 0, error)
        return kept._replace(gap=error)

    def _currencies_of(
        self, priced: Sequence[CompiledMeter], billing: Currency | None
    ) -> Sequence[Currency]:
        """Return the currencies that apply and in which all priced meters have a price."""
        candidates = self._currencies if billing is None else (billing,)
        found = [code for code in candidates if all(code in meter.prices for meter in priced)]
        if found:
            return found
        if billing is not None:
            without = next(meter.meter_id for meter in priced if billing not in meter.prices)
            raise NoPriceError(f"the meter {without} has no price in {billing}", without)
        raise NoPriceError("the meters of this event have no currency in common")


def _check_quantities(meters: Sequence[CompiledMeter], metadata: Metadata) -> None:
    """Refuse an event with a bad quantity, or with none at all: a property is then misspelt."""
    if not any(meter.measures(metadata) for meter in meters):
        wanted = ", ".join(sorted({repr(meter.summed) for meter in meters}))
        raise BadQuantityError(f"it has none of the properties that its meters sum: {wanted}")
    for meter in meters:
        meter.quantity(metadata)


def _without_price(meter_id: MeterId) -> NoPriceError:
    return NoPriceError(f"the meter {meter_id} has no price", meter_id)


def _unmetered(name: str, *, has_meters: bool) -> str:
    if has_meters:
        return f"no meter of {name!r} has a filter that the event matches"
    return f"no meter measures {name!r}"


def _plain(meters: Sequence[CompiledMeter], currency: Currency) -> Plain | None:
    if any(meter.matches or currency not in meter.prices for meter in meters):
        return None
    timelines = [meter.prices[currency] for meter in meters]
    newest = [price for line in timelines if (price := line.unit_prices[-1]) is not None]
    if len(newest) < len(timelines):
        return None
    scale = max(_scale(price) for price in newest)
    lines = tuple(
        PlainLine(meter.summed, int(EXACT.scaleb(price, scale)))
        for meter, price in zip(meters, newest, strict=True)
    )
    return Plain(lines, scale, max(timeline.starts[-1] for timeline in timelines))


def _scale(value: Decimal) -> int:
    """Return how many decimals a finite value has."""
    return max(0, -int(value.as_tuple().exponent))


def _cost(currency: Currency, total: Decimal) -> Cost:
    scale = _scale(total)
    return Cost(currency, int(EXACT.scaleb(total, scale)), scale)


def _total(
    meters: Sequence[CompiledMeter], currency: Currency, event_at: str, metadata: Metadata
) -> tuple[Decimal, CompiledMeter | None]:
    """Return the total of the priced meters, and a meter without a price that the event adds to."""
    total, unpriced = ZERO, None
    for meter in meters:
        quantity, price = meter.quantity(metadata), meter.prices[currency].at(event_at)
        if price is not None:
            total = EXACT.add(total, EXACT.multiply(quantity, price))
        elif quantity:
            unpriced = meter
    return total, unpriced


def compile_meters(
    meters: Iterable[Meter], prices: Iterable[Price]
) -> dict[str, tuple[CompiledMeter, ...]]:
    """Return the meters in use with their prices, by event name."""
    timelines = _timelines(prices)
    by_event_name: dict[str, list[CompiledMeter]] = {}
    for meter in meters:
        if meter.archived_at is not None:
            continue
        compiled = CompiledMeter(
            meter.meter_id,
            meter.name,
            meter.measurement_unit,
            meter.aggregation.key,
            compile_filter(meter.filter) if meter.filter else None,
            timelines.get(meter.meter_id, {}),
        )
        by_event_name.setdefault(meter.event_name, []).append(compiled)
    return {name: tuple(found) for name, found in by_event_name.items()}


def _timelines(prices: Iterable[Price]) -> dict[MeterId, dict[Currency, Timeline]]:
    found: dict[MeterId, dict[Currency, list[Price]]] = {}
    for price in prices:
        if not price.is_taken_back:
            found.setdefault(price.meter_id, {}).setdefault(price.currency, []).append(price)
    return {
        meter_id: {currency: _timeline(rows) for currency, rows in by_currency.items()}
        for meter_id, by_currency in found.items()
    }


def _timeline(prices: list[Price]) -> Timeline:
    """Return the timeline of prices. Among those in force, the one that began last counts.

    If two began at the same moment, the one that was made last counts.
    """
    changes: dict[datetime, list[Price]] = {}
    for price in prices:
        for moment in (price.effective_from, price.ended_at):
            if moment is not None:
                changes.setdefault(moment, []).append(price)
    begun: list[tuple[datetime, PriceId]] = []
    unit_prices = {price.price_id: price.unit_price for price in prices}
    in_force: list[tuple[str, Decimal | None]] = []
    for moment in sorted(changes):
        for price in changes[moment]:
            place = (price.effective_from, price.price_id)
            if moment == price.effective_from:
                insort(begun, place)
            else:
                begun.remove(place)
        in_force.append((to_wire(moment), unit_prices[begun[-1][1]] if begun else None))
    return Timeline(tuple(at for at, _ in in_force), tuple(price for _, price in in_force))
