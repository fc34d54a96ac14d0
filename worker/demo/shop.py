"""Credit that the demo's customers buy during the traffic, charged through the Stripe adapter."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import cycle
from typing import Final

from sqlalchemy import Connection

from metering.db import Transactions
from metering.ids import ChargeId, Currency
from metering.payment.charges.store import NewCharge, lock_charge_of, store_charge
from metering.payment.top_ups.top_up import NewTopUp, set_top_up
from metering.purchase.packages import NewPackage, create_package
from metering.purchase.purchases import NewPurchase, order_purchase
from worker.demo.prices import CURRENCIES
from worker.demo.scene import Scene, half_of
from worker.demo.traffic import CUSTOMERS

SUCCEEDS: Final = "pm_ok"
DECLINED: Final = "pm_declined"
# What the buyers pay with, in turn. Two are charged and get no good answer at first: `pm_hang` none
# at all, `pm_500` an error. Each is a method of the buyer's own: see `_saved`.
METHODS: Final = (SUCCEEDS, SUCCEEDS, "pm_hang", DECLINED, "pm_500", SUCCEEDS, SUCCEEDS, SUCCEEDS)

# The customer whose wallet buys by itself, at a quarter of what it will spend: as much as it will
# spend, so that once is enough. The cap would let it buy more often.
AUTOMATIC: Final = 4
AUTOMATIC_SHARE: Final = Fraction(1, 4)
CAP_PACKAGES: Final = 3


@dataclass(slots=True)
class Sold:
    """What the gateway is going to be asked for: amounts in minor units by currency."""

    payments: int = 0
    declined: int = 0
    top_ups: int = 0
    amounts: Counter[str] = field(default_factory=Counter)

    def add(self, currency: str, amount: int) -> None:
        """Count a payment that will succeed."""
        self.payments += 1
        self.amounts[currency] += amount


def watch_over(transaction: Transactions, scene: Scene, spend: Sequence[int], sold: Sold) -> None:
    """Give the one customer its rule; note what it will buy, if its traffic goes that far.

    The wallet has its first credit by now, or it would buy at once.
    """
    currency = Currency(Scene.currency_of(AUTOMATIC))
    price, threshold = price_of(AUTOMATIC, spend), int(spend[AUTOMATIC] * AUTOMATIC_SHARE)
    with transaction() as conn:
        package = NewPackage(name="refill", currency=currency, price=price)
        package_id = create_package(conn, scene.business_id, package, CURRENCIES).package_id
        rule = NewTopUp(
            threshold=threshold,
            package_id=package_id,
            payment_method=_saved(AUTOMATIC, SUCCEEDS),
            day_cap=price * CAP_PACKAGES,
            month_cap=price * CAP_PACKAGES,
            account_id=scene.account_id,
        )
        set_top_up(conn, scene.business_id, scene.customers[AUTOMATIC], currency, rule)
    if 2 * half_of(AUTOMATIC, spend) - spend[AUTOMATIC] <= threshold:
        sold.top_ups += 1
        sold.add(currency, price)


def buy_more(
    transaction: Transactions, scene: Scene, spend: Sequence[int], sold: Sold
) -> list[ChargeId]:
    """Let the customers that were meant to buy more order as much as they spend; note it.

    Returns the charges that are to be asked for.

    Raises:
        DBAPIError: the database is away. Nothing was recorded; try again.

    """
    buyers = [number for number in range(CUSTOMERS) if Scene.purse_of(number).topped_up]
    dealt = list(zip(buyers, cycle(METHODS), strict=False))
    with transaction() as conn:
        charges = [_charge(conn, scene, number, spend, method) for number, method in dealt]
    for number, method in dealt:
        if method == DECLINED:
            sold.declined += 1
        else:
            sold.add(Scene.currency_of(number), price_of(number, spend))
    return charges


def price_of(number: int, spend: Sequence[int]) -> int:
    """Return what a customer pays for more credit, which is what the credit is worth."""
    return max(1, spend[number])


def _saved(number: int, method: str) -> str:
    """Return a payment method of a customer as Stripe's adapter takes it."""
    return f"cus_{number}/{method}"


def _charge(
    conn: Connection, scene: Scene, number: int, spend: Sequence[int], method: str
) -> ChargeId:
    """Store a purchase that is not paid yet, and its charge: once, if the last try was in vain."""
    new = NewPurchase(
        order_id=f"more-{number}",
        currency=Scene.currency_of(number),
        price=price_of(number, spend),
    )
    purchase = order_purchase(conn, scene.business_id, scene.customers[number], new)
    known = lock_charge_of(conn, purchase_id=purchase.purchase_id)
    if known is not None:
        return known.charge_id
    charge = NewCharge(
        business_id=scene.business_id,
        account_id=scene.account_id,
        customer_id=purchase.customer_id,
        amount_minor=purchase.price_minor,
        currency=purchase.currency,
        purchase_id=purchase.purchase_id,
        payment_method=_saved(number, method),
    )
    return store_charge(conn, charge)
