"""What an import costs: its events priced as they are sent, by the rate card of that moment.

The drain prices them again, by the same card unless it has changed meanwhile; so this is what the
events will cost, and what will become of those that cannot be charged.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from metering.accept.record import UsageSink
from metering.buffer.chunk import BufferedEvent, EventColumns
from metering.db import Transactions
from metering.debit import statements
from metering.debit.batch import KeyedEvent, key_event
from metering.debit.payers import Payers
from metering.debit.price import PricedEvent, price_events
from metering.ids import BusinessId, Currency, CustomerId
from metering.money import EXACT, ZERO, plain
from metering.rate_card.card import exact_cost
from metering.rate_card.cards import RateCards


@dataclass(slots=True)
class Costs:
    """Counts of the events of an import, and their exact cost in minor units by currency."""

    charged: int = 0
    kept_free: int = 0
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    cost: dict[Currency, Decimal] = field(default_factory=dict)

    def add(self, event: PricedEvent) -> None:
        """Count an event that will be posted."""
        if event.currency is None:
            self.kept_free += 1
            return
        self.charged += 1
        cost = exact_cost(event.mantissa, event.scale)
        self.cost[event.currency] = EXACT.add(self.cost.get(event.currency, ZERO), cost)

    def record(self) -> dict[str, object]:
        """Return it for JSON."""
        return {
            "charged": self.charged,
            "cost_minor": {code: plain(cost) for code, cost in sorted(self.cost.items())},
            "kept_free": self.kept_free,
            "repeated": self.repeated,
            "will_be_refused": dict(sorted(self.refused.items())),
        }

    def lines(self) -> list[str]:
        """Return it for people."""
        cost = ", ".join(f"{plain(cost)} {code}" for code, cost in sorted(self.cost.items()))
        said = [f"{self.charged} cost {cost or 'nothing'} (minor units, at the prices of now)"]
        if self.repeated:
            said.append(f"{self.repeated} were sent before: not charged again")
        if self.kept_free:
            said.append(f"{self.kept_free} are kept and charged to nobody: no meter or price")
        for reason, count in sorted(self.refused.items()):
            said.append(f"{count} will be refused: {reason}; see gullak refused")
        return said


@dataclass(slots=True)
class PricingSink:
    """A buffer that also tells what the events cost that it takes."""

    sink: UsageSink
    transaction: Transactions
    cards: RateCards
    payers: Payers = field(default_factory=Payers)
    costs: Costs = field(default_factory=Costs)

    def append(
        self, business_id: BusinessId, events: Sequence[BufferedEvent] | EventColumns
    ) -> None:
        """Hold all of `events`, or raise; then price them."""
        self.sink.append(business_id, events)
        if isinstance(events, EventColumns):
            events = list(map(BufferedEvent, *events))
        self._price(business_id, [key_event(business_id, event) for event in events])

    def _price(self, business_id: BusinessId, events: Sequence[KeyedEvent]) -> None:
        with self.transaction() as conn:
            versions = self.cards.versions(conn, {business_id})
            cards = self.cards.current(conn, versions)
            wanted = {CustomerId(event.customer_id) for event in events}
            payers = self.payers.of(conn, versions, wanted)
            keys = {"event_keys": [event.key for event in events]}
            charged = conn.execute(statements.CHARGED_KEYS, keys).all()
        taken = {row.event_key: row.payload_digest for row in charged}
        fresh = [event for event in events if event.key not in taken]
        for event in events:
            if event.key in taken:
                self._count_taken(is_same=taken[event.key] == event.digest)
        priced, refusals = price_events(cards, payers, fresh)
        for one in priced:
            self.costs.add(one)
        self.costs.refused.update(refusal.error.reason for refusal in refusals)

    def _count_taken(self, *, is_same: bool) -> None:
        if is_same:
            self.costs.repeated += 1
        else:
            self.costs.refused["conflict"] += 1
