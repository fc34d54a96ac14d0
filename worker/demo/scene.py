"""The demo's business: price lists, customers with prepaid credit, alert rules, an endpoint."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Final, NamedTuple

from sqlalchemy import Connection

from metering.access.keys import create_key
from metering.db import Transactions
from metering.ids import AccountId, BusinessId, Currency, CustomerId
from metering.ledger.businesses import BusinessChange, change_business, create_business
from metering.ledger.customers import NewCustomer, create_customer
from metering.ledger.manual import ManualEntry, enter
from metering.low_credit.rules import set_rule
from metering.payment.manual import PaidOrder, record_paid_order
from metering.payment.provider_account import NewAccount, connect_account
from metering.rate_card.catalogue import (
    Aggregation,
    NewMeter,
    NewPrice,
    create_meter,
    create_price,
)
from metering.rate_card.filter import Condition, Filter
from metering.webhook.endpoints import NewEndpoint, create_endpoint, endpoint_secret
from worker.demo.prices import CURRENCIES, PRICE_LIST, REQUEST, Item
from worker.demo.traffic import CUSTOMERS

# Prices are in force for longer than an event may be old.
PRICED_FOR: Final = timedelta(days=60)
# By default a wallet is low at a fifth of what a customer spends, until it is back at a third.
LOW_SHARE: Final = Fraction(1, 5)
RECOVERED_SHARE: Final = Fraction(1, 3)
OWN_RULES: Final = (Fraction(3, 4), Fraction(1, 4))
OWN_RECOVERED: Final = Fraction(11, 10)  # of the threshold
# The receiver judges alerts; it is not told of each credit.
ALERTS: Final = ("credit.balance_low", "credit.balance_recovered")


class Purse(NamedTuple):
    """How much credit a customer begins with, as a share of what it will spend."""

    share: Fraction
    own_rules: bool = False
    topped_up: bool = False


# Dealt to the customers of each currency in turn.
PURSES: Final = (
    Purse(Fraction(2)),  # plenty: no alert
    Purse(Fraction(21, 20)),  # ends low
    Purse(Fraction(3, 5)),  # runs out: what was used is owed
    Purse(Fraction(9, 10), own_rules=True),
    Purse(Fraction(1, 2), topped_up=True),  # buys more in the middle: recovers, and falls again
)


class RuleSet(NamedTuple):
    """A low-credit rule as the demo made it; `customer_id` None: the default of the currency."""

    customer_id: CustomerId | None
    currency: str
    threshold_minor: int
    recover_at_minor: int


@dataclass(slots=True)
class Scene:
    """What was made; lists are in the order of the customers' numbers."""

    business_id: BusinessId
    account_id: AccountId
    customers: list[CustomerId] = field(default_factory=list)
    rules: list[RuleSet] = field(default_factory=list)
    credited: Counter[str] = field(default_factory=Counter)
    secret: str = ""
    api_key: str = field(default="", repr=False)

    @staticmethod
    def currency_of(number: int) -> str:
        """Return what a customer is billed in: every second one in rupees."""
        return CURRENCIES[number % len(CURRENCIES)]

    @staticmethod
    def purse_of(number: int) -> Purse:
        """Return how a customer was dealt with."""
        return PURSES[number // len(CURRENCIES) % len(PURSES)]


CURRENCY_OF: Final = tuple(Scene.currency_of(number) for number in range(CUSTOMERS))


def half_of(number: int, spend: Sequence[int]) -> int:
    """Return half of the credit that a customer begins with, in minor units."""
    return max(1, int(spend[number] * Scene.purse_of(number).share / 2))


def make_scene(
    transaction: Transactions, spend: Sequence[int], receiver_url: str, gateway: NewAccount
) -> Scene:
    """Make all of it. The workers have to credit the paid orders yet.

    `spend`: what each customer is going to use, in whole minor units of its currency. `gateway`:
    the account that further credit will be paid through.
    """
    with transaction() as conn:
        business_id = create_business(conn, "Gullak demo")
        change_business(conn, business_id, BusinessChange(on_unmetered="keep_free"))
        scene = Scene(business_id, connect_account(conn, business_id, gateway).account_id)
        wanted = NewEndpoint(url=receiver_url, filter_types=[*ALERTS])
        endpoint = create_endpoint(conn, business_id, wanted)
        scene.secret = endpoint_secret(conn, business_id, endpoint.endpoint_id)
        scene.api_key = create_key(conn, business_id, "demo", ["ingest"]).key
        _Maker(conn, scene, spend).make()
    return scene


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the prices, the customers, their rules and their credit in one transaction."""

    conn: Connection
    scene: Scene
    spend: Sequence[int]

    def make(self) -> None:
        for item in PRICE_LIST:
            self._price(item)
        self.scene.customers = [self._customer(number) for number in range(CUSTOMERS)]
        # Rules before credit, so that each alert follows from an entry.
        for currency in CURRENCIES:
            self._default_rule(currency)
        for number in range(CUSTOMERS):
            self._own_rules(number)
            self._credit(number)

    def _price(self, item: Item) -> None:
        kind = "count" if item.summed is None else "sum"
        condition = Condition(key="model", operator="equals", value=item.model or "")
        meter = NewMeter(
            name=item.name,
            event_name=REQUEST,
            measurement_unit="token" if item.summed else "request",
            aggregation=Aggregation.model_validate({"type": kind, "key": item.summed}),
            filter=Filter(conjunction="and", clauses=[condition]) if item.model else None,
        )
        meter_id = create_meter(self.conn, self.scene.business_id, meter).meter_id
        for currency, price in item.prices.items():
            new = NewPrice(
                meter_id=meter_id,
                currency=currency,
                price_per_unit=price,
                units=item.units,
                effective_from=datetime.now(UTC) - PRICED_FOR,
            )
            create_price(self.conn, self.scene.business_id, new, CURRENCIES)

    def _customer(self, number: int) -> CustomerId:
        new = NewCustomer(
            email=f"customer-{number}@example.com",
            name=f"Customer {number}",
            billing_currency=CURRENCY_OF[number],
        )
        return create_customer(self.conn, self.scene.business_id, new, CURRENCIES)

    def _default_rule(self, currency: str) -> None:
        spent = [n for n, code in zip(self.spend, CURRENCY_OF, strict=True) if code == currency]
        mean = Fraction(sum(spent), len(spent))
        self._rule(None, currency, mean * LOW_SHARE, mean * RECOVERED_SHARE)

    def _own_rules(self, number: int) -> None:
        for share in OWN_RULES if Scene.purse_of(number).own_rules else ():
            low, customer_id = self.spend[number] * share, self.scene.customers[number]
            self._rule(customer_id, CURRENCY_OF[number], low, low * OWN_RECOVERED)

    def _rule(
        self, customer_id: CustomerId | None, currency: str, low: Fraction, recovered: Fraction
    ) -> None:
        threshold, recover_at = int(low), max(int(low) + 1, int(recovered))
        self.scene.rules.append(RuleSet(customer_id, currency, threshold, recover_at))
        set_rule(
            self.conn,
            self.scene.business_id,
            Currency(currency),
            threshold,
            customer_id=customer_id,
            recover_at_minor=recover_at,
        )

    def _credit(self, number: int) -> None:
        """Give half of the credit by hand and sell the other half."""
        customer_id, currency = self.scene.customers[number], CURRENCY_OF[number]
        half = half_of(number, self.spend)
        for code in CURRENCIES:
            self._enter(number, code, half if code == currency else self._enough(code))
        order = PaidOrder(
            order_id=f"first-{number}", customer_id=customer_id, currency=currency, paid=half
        )
        record_paid_order(self.conn, self.scene.business_id, order)
        self.scene.credited[currency] += half

    def _enough(self, currency: str) -> int:
        """Return an amount at which no default rule alerts."""
        return max(r.recover_at_minor for r in self.scene.rules if r.currency == currency)

    def _enter(self, number: int, currency: str, amount: int) -> None:
        request = ManualEntry(
            amount=amount,
            currency=currency,
            entry_type="credit",
            idempotency_key=f"welcome-{number}-{currency}",
            reason="welcome credit",
        )
        for _ in range(2):  # twice on purpose: the key makes it one entry
            enter(self.conn, self.scene.business_id, self.scene.customers[number], request)
        self.scene.credited[currency] += amount
