"""The cost of events as they are sent, by the rate card of that moment.

The drain prices them again, by the same card unless it has changed meanwhile.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from metering.accept.record import UsageSink
from metering.buffer.chunk import BufferedEvent, EventColumns
from metering.db import Transactions
from metering.debit import statements
from metering.debit.batch import key_event
from metering.debit.payers import Payers
from metering.debit.price import PricedEvent, price_events
from metering.ids import BusinessId, Currency, CustomerId
from metering.money import EXACT, ZERO
from metering.rate_card.card import exact_cost
from metering.rate_card.cards import RateCards


@dataclass(slots=True)
class ExpectedCost:
    """Counts of events, and their exact cost in minor units by currency.

    `repeated`: they were charged before. `refused`: reason -> events.
    """

    charged: int = 0
    kept_free: int = 0
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    cost_minor: dict[Currency, Decimal] = field(default_factory=dict)

    def add(self, event: PricedEvent) -> None:
        """Count an event that will be posted."""
        if event.currency is None:
            self.kept_free += 1
            return
        self.charged += 1
        cost = exact_cost(event.mantissa, event.scale)
        self.cost_minor[event.currency] = EXACT.add(self.cost_minor.get(event.currency, ZERO), cost)


@dataclass(slots=True)
class PricingSink:
    """A buffer that also adds up the expected cost of the events that it takes."""

    sink: UsageSink
    transaction: Transactions
    cards: RateCards
    payers: Payers = field(default_factory=Payers)
    expected: ExpectedCost = field(default_factory=ExpectedCost)

    def append(
        self, business_id: BusinessId, events: Sequence[BufferedEvent] | EventColumns
    ) -> None:
        """Append all of `events`, or raise; then price them."""
        self.sink.append(business_id, events)
        if isinstance(events, EventColumns):
            events = list(map(BufferedEvent, *events))
        keyed = [key_event(business_id, event) for event in events]
        with self.transaction() as conn:
            versions = self.cards.versions(conn, {business_id})
            cards = self.cards.current(conn, versions)
            wanted = {CustomerId(event.customer_id) for event in keyed}
            payers = self.payers.of(conn, versions, wanted)
            keys = {"event_keys": [event.key for event in keyed]}
            charged = conn.execute(statements.CHARGED_KEYS, keys).all()
        taken = {row.event_key: row.payload_digest for row in charged}
        for event in keyed:
            if event.key in taken and taken[event.key] == event.digest:
                self.expected.repeated += 1
            elif event.key in taken:
                self.expected.refused["conflict"] += 1
        fresh = [event for event in keyed if event.key not in taken]
        priced, refusals = price_events(cards, payers, fresh)
        for one in priced:
            self.expected.add(one)
        self.expected.refused.update(refusal.error.reason for refusal in refusals)
