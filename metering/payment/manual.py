"""The shop's own reports about a purchase: that it was paid, refunded or disputed.

They serve payments that no provider reports, and corrections. Each is a fact like a provider's,
under an id that the shop chooses: the same report again changes nothing, and an id that was used
for something else is refused. A provider's payment is accepted by the provider's id, even if it is
below the price: its refunds and disputes count from then on. The payment is locked first, as for
facts of a provider, and the purchase is settled in the same transaction.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from metering.clock import utc_now
from metering.db import database_now
from metering.errors import (
    FieldProblem,
    IdempotencyConflictError,
    InvalidInputError,
    RefundExceedsPaymentError,
    UnpaidPurchaseError,
)
from metering.fields import CurrencyName, Filled64, Filled255, PositiveMinor
from metering.ids import BusinessId, CustomerId, PurchaseId
from metering.payment import statements
from metering.payment.charges import statements as of_charges
from metering.payment.facts import (
    PaymentFact,
    ReversalFact,
    apply_parked,
    lock_payment,
    note_payment,
    note_reversal,
)
from metering.purchase.packages import Days
from metering.purchase.payments import Payment, PaymentKey, payments_of
from metering.purchase.purchases import Purchase, Terms, get_purchase, place
from metering.purchase.reversal_target import Reversal, refunded_of
from metering.purchase.settle import reversals_of, settle_purchase

DisputeStatus = Literal["open", "won", "lost"]


class PaidOrder(BaseModel):
    """An order that was paid. `credit`: the credit, if not the price (a bonus, tax)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order_id: Filled255
    customer_id: Filled64
    currency: CurrencyName
    paid: PositiveMinor
    credit: PositiveMinor | None = None
    valid_days: Days | None = None


class ShopPayment(BaseModel):
    """A payment of a purchase. By default its id is the order number, its amount the price.

    The `payment_id` of a provider's payment accepts that payment, whatever its amount.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    payment_id: Filled255 | None = None
    amount: PositiveMinor | None = None


class ShopRefund(BaseModel):
    """A refund of a purchase's payment; by default of all of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    refund_id: Filled255
    amount: PositiveMinor | None = None


class ShopDispute(BaseModel):
    """A dispute of a purchase's payment: open, won by the shop, or lost.

    `amount`: the disputed part of the payment; by default the amount reported before, or all of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dispute_id: Filled255
    status: DisputeStatus
    amount: PositiveMinor | None = None


def record_paid_order(conn: Connection, business_id: BusinessId, order: PaidOrder) -> PurchaseId:
    """Record an order that was paid; the same order again is the same purchase.

    Raises: NotFoundError or UnsupportedCurrencyError if there is no such wallet.
    IdempotencyConflictError if the order number was used with other content.
    """
    terms = Terms(
        currency=order.currency,
        price_minor=order.paid,
        credit_minor=order.paid if order.credit is None else order.credit,
        valid_days=order.valid_days,
    )
    customer_id = CustomerId(order.customer_id)
    purchase = place(conn, business_id, customer_id, terms, order_id=order.order_id)
    payment = PaymentFact(
        provider="shop",
        payment_id=order.order_id,
        status="succeeded",
        amount_minor=order.paid,
        currency=order.currency,
        occurred_at=utc_now(),
        purchase_id=purchase.purchase_id,
    )
    note_payment(conn, business_id, payment)
    return purchase.purchase_id


# --- payments -------------------------------------------------------------------------------------


def record_payment(
    conn: Connection, business_id: BusinessId, purchase_id: PurchaseId, report: ShopPayment
) -> None:
    """Record that a purchase was paid, and settle it.

    Raises: NotFoundError if the business has no such purchase. InvalidInputError if the named
    payment cannot pay for it, or if one is parked and none is named. IdempotencyConflictError if
    the payment's id has another amount or purchase.
    """
    purchase = get_purchase(conn, business_id, purchase_id)
    if report.payment_id is None:
        _check_none_parked(conn, purchase)
    elif (payment := _provider_payment(conn, purchase, report.payment_id)) is not None:
        _accept(conn, purchase, payment, report.amount)
        return
    fact = PaymentFact(
        provider="shop",
        payment_id=report.payment_id or purchase.order_id,
        status="succeeded",
        amount_minor=report.amount or purchase.price_minor,
        currency=purchase.currency,
        occurred_at=database_now(conn),
        purchase_id=purchase_id,
    )
    note_payment(conn, business_id, fact)
    key = PaymentKey(business_id, fact.provider, fact.payment_id)
    (stored,) = payments_of(conn, statements.PAYMENT, **key._asdict())
    stored_values = (stored.purchase_id, stored.amount_minor, stored.currency)
    if stored_values != (purchase_id, fact.amount_minor, fact.currency):
        raise IdempotencyConflictError(fact.payment_id, "payment_id")
    settle_purchase(conn, purchase_id)


def _check_none_parked(conn: Connection, purchase: Purchase) -> None:
    """Refuse a payment without an id while another one is parked: both could be the same."""
    if purchase.entry_id is not None:
        return
    for parked in payments_of(conn, statements.PARKED_PAYMENT, purchase_id=purchase.purchase_id):
        which = f"{parked.payment_id}, {parked.amount_minor} {parked.currency}"
        reason = f"is missing: {parked.provider} reports {which}; name that payment or another one"
        raise InvalidInputError(FieldProblem("payment_id", reason))


def _provider_payment(conn: Connection, purchase: Purchase, payment_id: str) -> Payment | None:
    """Return the provider's payment with this id, locked. Returns None if there is none."""
    values = {
        "business_id": purchase.business_id,
        "purchase_id": purchase.purchase_id,
        "payment_id": payment_id,
    }
    found = payments_of(conn, statements.PROVIDER_PAYMENT, **values)
    if not found:
        return None
    lock_payment(conn, found[0].key)
    (locked,) = payments_of(conn, statements.PROVIDER_PAYMENT, **values)
    return locked


def _accept(
    conn: Connection, purchase: Purchase, payment: Payment, amount_minor: int | None
) -> None:
    """Let a provider's payment pay for all of a purchase."""
    _check_acceptable(purchase, payment, amount_minor)
    accepted = payment._replace(purchase_id=purchase.purchase_id)
    conn.execute(statements.ACCEPT, accepted._asdict())
    conn.execute(of_charges.WAKE_CHARGE, accepted._asdict())
    settle_purchase(conn, purchase.purchase_id)
    apply_parked(conn, payment.key)


def _check_acceptable(purchase: Purchase, payment: Payment, amount_minor: int | None) -> None:
    paid_by = (purchase.provider, purchase.payment_id)
    field, reason = "payment_id", ""
    if payment.checkout_id is not None or payment.purchase_id not in {None, purchase.purchase_id}:
        reason = "pays for something else"
    elif payment.status != "succeeded":
        reason = f"has not succeeded: {payment.status}"
    elif payment.currency != purchase.currency:
        reason = f"is in {payment.currency}, not {purchase.currency}"
    elif purchase.entry_id is not None and paid_by != (payment.provider, payment.payment_id):
        reason = f"has not settled the purchase; this one has: {' '.join(map(str, paid_by))}"
    elif amount_minor not in {None, payment.amount_minor}:
        field, reason = "amount", f"is {payment.amount_minor} as {payment.provider} reports it"
    if reason:
        raise InvalidInputError(FieldProblem(field, reason))


# --- refunds and disputes -------------------------------------------------------------------------


def record_reversal(
    conn: Connection,
    business_id: BusinessId,
    purchase_id: PurchaseId,
    report: ShopRefund | ShopDispute,
) -> None:
    """Record a refund or dispute of a purchase's payment, and settle the purchase.

    A refund and a lost dispute take that share of the credit back. An open dispute freezes the
    credit, a won one frees it.

    Raises: NotFoundError if the business has no such purchase. UnpaidPurchaseError if it is not
    paid. InvalidInputError if the amount is more than was paid, or than earlier refunds left of it.
    IdempotencyConflictError if the id has another amount or payment.
    """
    purchase = get_purchase(conn, business_id, purchase_id)
    if purchase.provider is None or purchase.payment_id is None or purchase.paid_minor is None:
        raise UnpaidPurchaseError
    if report.amount is not None and report.amount > purchase.paid_minor:
        problem = FieldProblem("amount", f"is more than the {purchase.paid_minor} that were paid")
        raise InvalidInputError(problem)
    payment = PaymentKey(business_id, purchase.provider, purchase.payment_id)
    lock_payment(conn, payment)
    is_refund = isinstance(report, ShopRefund)
    fact = ReversalFact(
        provider=purchase.provider,
        kind="refund" if is_refund else "dispute",
        reversal_id=report.refund_id if isinstance(report, ShopRefund) else report.dispute_id,
        payment_id=purchase.payment_id,
        status="succeeded" if isinstance(report, ShopRefund) else report.status,
        occurred_at=database_now(conn),
        amount_minor=report.amount,
        currency=purchase.currency,
    )
    earlier = _earlier(conn, business_id, fact)
    # A dispute may leave its amount out, or enter the amount that was unclear before.
    is_open = not is_refund and earlier is not None and None in {fact.amount_minor, earlier[1]}
    if earlier not in {None, (fact.payment_id, fact.amount_minor)} and not is_open:
        raise IdempotencyConflictError(fact.reversal_id, f"{fact.kind}_id")
    if is_refund and earlier is None:
        _check_left(conn, purchase, fact)
    note_reversal(conn, business_id, fact)
    stored = _earlier(conn, business_id, fact)
    # Checked again: another purchase, under a lock of its own, may have used the id meanwhile.
    if stored is None or stored[0] != fact.payment_id:
        raise IdempotencyConflictError(fact.reversal_id, f"{fact.kind}_id")
    settle_purchase(conn, purchase_id)
    apply_parked(conn, payment)


def _check_left(conn: Connection, purchase: Purchase, refund: ReversalFact) -> None:
    """Refuse a new refund of more than the others have left; the payment is locked.

    A provider's total may include it already: then it adds nothing.
    """
    paid_minor = purchase.paid_minor or 0
    others = reversals_of(conn, purchase)
    new = Reversal("refund", "succeeded", refund.amount_minor, refund.occurred_at)
    before_minor = refunded_of(others, paid_minor)
    if refunded_of([*others, new], paid_minor) > max(paid_minor, before_minor):
        left_minor = max(0, paid_minor - before_minor)
        raise RefundExceedsPaymentError(paid_minor, left_minor)


def _earlier(
    conn: Connection, business_id: BusinessId, fact: ReversalFact
) -> tuple[str, int | None] | None:
    """Return the payment and amount that are stored for this id. Returns None if there are none.

    An amount in another currency cannot contradict this one, but it asks for one.

    Raises: InvalidInputError if there is such an amount, and the fact has an end but no amount.
    """
    values = {
        "business_id": business_id,
        "provider": fact.provider,
        "kind": fact.kind,
        "reversal_id": fact.reversal_id,
    }
    found = conn.execute(statements.REVERSAL, values).one_or_none()
    if found is None:
        return None
    if found.amount_minor is None or found.currency in {None, fact.currency}:
        return found.payment_id, found.amount_minor
    if fact.amount_minor is None and fact.status in {"succeeded", "lost"}:
        reason = f"is missing: the amount before is in {found.currency}, not {fact.currency}"
        raise InvalidInputError(FieldProblem("amount", reason))
    return found.payment_id, fact.amount_minor
