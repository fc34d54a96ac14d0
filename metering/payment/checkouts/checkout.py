"""Checkouts: credit pays first, and a payment the rest.

When a checkout begins, a debit reserves the credit part. If the payment fails or takes too long,
the credit goes back to the lots that it came from. A payment that succeeds after that buys credit.
As with a purchase, the state of a checkout follows from the facts of its payments.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import Connection

from metering.db import database_now, get_one, rows
from metering.ids import AccountId, BusinessId, ChargeId, CheckoutId, Currency, CustomerId, EntryId
from metering.ledger.entry import Posting
from metering.ledger.lots.restore import Restorable, restoration, restored_terms
from metering.ledger.post import open_book, post
from metering.ledger.wallets import wallet_of, wallets_of
from metering.payment.charges.store import Charge, end_charge, lock_charge_of
from metering.payment.checkouts import statements
from metering.purchase.payments import Payment, choose_payment, park_payment, payments_of
from metering.purchase.purchases import Terms, place
from metering.purchase.refund import given_back
from metering.purchase.settle import settle_purchase
from metering.webhook.outbox import Json, Notice, WebhookType, publish

CheckoutStatus = Literal["pending", "completed", "failed"]
FAILED: Final = "the payment failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A checkout as stored, with its charge; amounts in minor units.

    `failure`: why it failed, or why its charge is parked.
    """

    checkout_id: CheckoutId
    business_id: BusinessId
    customer_id: CustomerId
    currency: Currency
    amount_minor: int
    credit_minor: int
    payment_minor: int
    status: CheckoutStatus
    idempotency_key: str
    debit_entry_id: EntryId | None
    release_entry_id: EntryId | None
    failure: str | None
    expires_at: datetime
    created_at: datetime
    ended_at: datetime | None
    charge_id: ChargeId | None
    account_id: AccountId | None
    payment_id: str | None
    payment_url: str | None


# --- read -----------------------------------------------------------------------------------------


def get_checkout(conn: Connection, business_id: BusinessId, checkout_id: CheckoutId) -> Checkout:
    """Return a checkout. Raises: NotFoundError if the business has no such checkout."""
    values = {"business_id": business_id, "checkout_id": checkout_id}
    return get_one(Checkout, conn.execute(statements.CHECKOUT, values), "checkout", checkout_id)


def page_of_checkouts(
    conn: Connection,
    business_id: BusinessId,
    customer_id: CustomerId,
    *,
    page: int,
    offset: int = 0,
    after: CheckoutId | None = None,
) -> list[Checkout]:
    """Return up to `page` checkouts of a customer, newest first, older than `after`.

    Raises: NotFoundError if the business has no such customer.
    """
    wallets_of(conn, business_id, customer_id)
    values = {"business_id": business_id, "page": page, "offset": offset, "after": after}
    wanted = {"customer_id": customer_id}
    return rows(Checkout, conn.execute(statements.CHECKOUT_PAGE, {**values, **wanted}))


# --- update ---------------------------------------------------------------------------------------


def update_checkout(conn: Connection, checkout_id: CheckoutId) -> bool:
    """Update a checkout and its charge from its payments; tell whether that changed anything.

    Safe at any time and any number of times. Locks: the charge, the checkout, then its wallet.

    Raises: NotFoundError if there is no such checkout.
    """
    charge = lock_charge_of(conn, checkout_id=checkout_id)
    values = {"checkout_id": checkout_id}
    found = conn.execute(statements.LOCK_CHECKOUT, values)
    checkout = get_one(Checkout, found, "checkout", checkout_id)
    if charge is None:
        return False
    payments = payments_of(conn, statements.PAYMENTS, checkout_id=checkout_id)
    paid = [payment for payment in payments if payment.status == "succeeded"]
    after = checkout
    if checkout.status == "pending":
        after = _decided(conn, checkout, charge, payments, paid)
    if after.status == "completed":
        for payment in paid:
            if payment.payment_id != after.payment_id:
                park_payment(conn, payment.key, "paid_twice")
    bought = after.status == "failed" and _turn_into_credit(conn, after, charge, paid)
    return bought or after.status != checkout.status


def _decided(
    conn: Connection,
    checkout: Checkout,
    charge: Charge,
    payments: Sequence[Payment],
    paid: Sequence[Payment],
) -> Checkout:
    """Complete a checkout, fail it, or leave it pending."""
    chosen = choose_payment(
        conn, paid, price_minor=checkout.payment_minor, currency=checkout.currency
    )
    if chosen is not None:
        end_charge(conn, charge.charge_id, "succeeded", payment_id=chosen.payment_id)
        after = replace(checkout, status="completed", payment_id=chosen.payment_id, failure=None)
    elif (failure := _failure(charge, payments)) is not None:
        end_charge(conn, charge.charge_id, "failed", failure=failure)
        released = _release(conn, checkout)
        after = replace(checkout, status="failed", failure=failure, release_entry_id=released)
    else:
        return checkout
    conn.execute(statements.END_CHECKOUT, asdict(after))
    tell_of_checkout(conn, after)
    return after


def tell_of_checkout(conn: Connection, checkout: Checkout) -> None:
    """Write the webhook of a checkout that has ended to the outbox."""
    now = database_now(conn)
    type_: WebhookType = "checkout.completed"
    if checkout.status == "failed":
        type_ = "checkout.expired" if checkout.expires_at <= now else "checkout.failed"
    data: dict[str, Json] = {
        "checkout_id": checkout.checkout_id,
        "customer_id": checkout.customer_id,
        "currency": checkout.currency,
        "status": checkout.status,
        "amount": checkout.amount_minor,
        "credit_part": checkout.credit_minor,
        "payment_part": checkout.payment_minor,
        "payment_id": checkout.payment_id,
        "ledger_entry_id": checkout.debit_entry_id,
        "release_entry_id": checkout.release_entry_id,
        "failure": checkout.failure,
    }
    publish(conn, [Notice(checkout.business_id, type_, data)], now)


def _failure(charge: Charge, payments: Sequence[Payment]) -> str | None:
    """Return why the checkout has failed. Returns None while a payment may still come.

    On a hosted page a customer whose card is declined can take another one, so a failed payment is
    not the end there: only the provider ends the charge.
    """
    if not charge.is_open:
        return charge.failure or FAILED
    tried = charge.payment_method is not None and bool(payments)
    if tried and all(payment.status == "failed" for payment in payments):
        return payments[-1].failure or FAILED
    return None


def _release(conn: Connection, checkout: Checkout) -> EntryId | None:
    """Give the reserved credit back to its lots, less what was refunded of it before."""
    debit_id = checkout.debit_entry_id
    if debit_id is None:
        return None
    wallet = wallet_of(conn, checkout.business_id, checkout.customer_id, checkout.currency)
    now = open_book(conn, wallet.wallet_id).now
    credits_, left_minor = given_back(conn, wallet.wallet_id, debit_id, checkout.credit_minor)
    if left_minor <= 0:
        return credits_[-1]
    posting = Posting(
        wallet_id=wallet.wallet_id,
        kind="refund",
        is_credit=True,
        amount_minor=left_minor,
        reason=f"checkout {checkout.checkout_id} failed",
        reference=debit_id,
        lot_moves=restoration(conn, Restorable([debit_id], credits_), left_minor, now),
        lot_terms=restored_terms(now),
    )
    (entry,) = post(conn, [posting])
    return entry.entry_id


def _turn_into_credit(
    conn: Connection, checkout: Checkout, charge: Charge, paid: Sequence[Payment]
) -> bool:
    """Buy credit for the payments of a checkout that has failed."""
    bought = False
    for payment in paid:
        if payment.currency != checkout.currency:
            park_payment(conn, payment.key, "other_currency")
        elif not payment.amount_minor:
            park_payment(conn, payment.key, "underpaid")
        elif conn.execute(statements.LOCK_LATE, payment._asdict()).one_or_none():
            _buy(conn, checkout, payment)
            bought = True
    if bought:
        last = paid[-1].payment_id
        end_charge(conn, charge.charge_id, "succeeded", payment_id=last)
    elif charge.is_open:
        end_charge(conn, charge.charge_id, "failed", failure=checkout.failure)
    return bought


def _buy(conn: Connection, checkout: Checkout, payment: Payment) -> None:
    terms = Terms(
        currency=checkout.currency,
        price_minor=payment.amount_minor,
        credit_minor=payment.amount_minor,
    )
    # With the payment's id, so that each of two late payments is a purchase of its own.
    purchase = place(
        conn,
        checkout.business_id,
        checkout.customer_id,
        terms,
        order_id=f"{checkout.checkout_id} {payment.payment_id}",
        origin="checkout",
    )
    moved = {**payment.key._asdict(), "purchase_id": purchase.purchase_id}
    conn.execute(statements.MOVE_PAYMENT, moved)
    settle_purchase(conn, purchase.purchase_id)
