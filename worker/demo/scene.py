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
from metering.ids import AccountId, BusinessId, Currency, CustomerId, PurchaseId
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


def make_scene(
    transaction: Transactions, spend: Sequence[int], receiver_url: str, gateway: NewAccount
) -> tuple[Scene, list[PurchaseId]]:
    """Make all of it; return it with the paid orders that are still to be credited.

    `spend`: what each customer is going to use, in whole minor units of its currency. `gateway`:
    the account that further credit will be paid through.
    """
    with transaction() as conn:
        business_id = create_business(conn, "Gullak demo")
        change_business(conn, business_id, BusinessChange(on_unmetered="keep_free"))
        scene = Scene(business_id, connect_account(conn, business_id, gateway).account_id)
        for item in PRICE_LIST:
            _price(conn, scene.business_id, item)
        wanted = NewEndpoint(url=receiver_url, filter_types=[*ALERTS])
        endpoint = create_endpoint(conn, business_id, wanted)
        scene.api_key = create_key(conn, scene.business_id, "demo", ["ingest"]).key
        scene.secret = endpoint_secret(conn, scene.business_id, endpoint.endpoint_id)
        for number in range(CUSTOMERS):
            scene.customers.append(_customer(conn, scene.business_id, number))
        # Rules before credit: so each alert follows from an entry, and can be counted from them.
        _rules(conn, scene, spend)
    with transaction() as conn:
        orders = [_credit(conn, scene, number, spend) for number in range(CUSTOMERS)]
    return scene, orders


def _price(conn: Connection, business_id: BusinessId, item: Item) -> None:
    kind = "count" if item.summed is None else "sum"
    condition = Condition(key="model", operator="equals", value=item.model or "")
    meter = create_meter(
        conn,
        business_id,
        NewMeter(
            name=item.name,
            event_name=REQUEST,
            measurement_unit="token" if item.summed else "request",
            aggregation=Aggregation.model_validate({"type": kind, "key": item.summed}),
            filter=Filter(conjunction="and", clauses=[condition]) if item.model else None,
        ),
    )
    for currency, price in item.prices.items():
        new = NewPrice(
            meter_id=meter.meter_id,
            currency=currency,
            price_per_unit=price,
            units=item.units,
            effective_from=datetime.now(UTC) - PRICED_FOR,
        )
        create_price(conn, business_id, new, CURRENCIES)


def _customer(conn: Connection, business_id: BusinessId, number: int) -> CustomerId:
    new = NewCustomer(
        email=f"customer-{number}@example.com",
        name=f"Customer {number}",
        billing_currency=Scene.currency_of(number),
    )
    return create_customer(conn, business_id, new, CURRENCIES)


def _rules(conn: Connection, scene: Scene, spend: Sequence[int]) -> None:
    for currency in CURRENCIES:
        of_currency = [s for n, s in enumerate(spend) if Scene.currency_of(n) == currency]
        mean = sum(of_currency) // len(of_currency)
        low, back = mean * LOW_SHARE, mean * RECOVERED_SHARE
        _rule(conn, scene, None, currency, low=low, recovered=back)
    for number, customer_id in enumerate(scene.customers):
        if Scene.purse_of(number).own_rules:
            for share in OWN_RULES:
                low = spend[number] * share
                currency, back = Scene.currency_of(number), low + low / 10
                _rule(conn, scene, customer_id, currency, low=low, recovered=back)


def _rule(
    conn: Connection,
    scene: Scene,
    customer_id: CustomerId | None,
    currency: str,
    *,
    low: Fraction,
    recovered: Fraction,
) -> None:
    threshold = int(low)
    rule = RuleSet(customer_id, currency, threshold, max(threshold + 1, int(recovered)))
    set_rule(
        conn,
        scene.business_id,
        Currency(currency),
        rule.threshold_minor,
        customer_id=customer_id,
        recover_at_minor=rule.recover_at_minor,
    )
    scene.rules.append(rule)


def _credit(conn: Connection, scene: Scene, number: int, spend: Sequence[int]) -> PurchaseId:
    """Give half of the credit by hand and sell the other half; a little in the other currency."""
    currency = Scene.currency_of(number)
    half = half_of(number, spend)
    _enter(conn, scene, number, currency, half)
    for other in CURRENCIES:
        if other != currency:
            enough = max(rule.recover_at_minor for rule in scene.rules if rule.currency == other)
            _enter(conn, scene, number, other, enough)
    return _order(conn, scene, number, half)


def half_of(number: int, spend: Sequence[int]) -> int:
    """Return half of the credit that a customer begins with, in minor units."""
    return max(1, int(spend[number] * Scene.purse_of(number).share / 2))


def _enter(conn: Connection, scene: Scene, number: int, currency: str, amount: int) -> None:
    request = ManualEntry(
        amount=amount,
        currency=currency,
        entry_type="credit",
        idempotency_key=f"welcome-{number}-{currency}",
        reason="welcome credit",
    )
    # Twice on purpose: the key makes it one entry.
    for _ in range(2):
        enter(conn, scene.business_id, scene.customers[number], request)
    scene.credited[currency] += amount


def _order(conn: Connection, scene: Scene, number: int, amount: int) -> PurchaseId:
    """Record an order that was paid elsewhere."""
    currency = Scene.currency_of(number)
    order = PaidOrder(
        order_id=f"first-{number}",
        customer_id=scene.customers[number],
        currency=currency,
        paid=amount,
    )
    purchase_id = record_paid_order(conn, scene.business_id, order)
    scene.credited[currency] += amount
    return purchase_id
