"""What a shop says itself of a purchase: that it was paid, refunded, disputed.

For payments that no provider tells of, and for corrections. Each is a fact like a provider's, by an
id of the shop's choice, so saying it again changes nothing; under an id that was used for something
else it is refused. A payment that a provider tells of is accepted by the provider's own id, though
it is of less than the price: its refunds and disputes count from then on. The payment is locked
first, as for facts of a provider, and the purchase follows in the same transaction.
"""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from metering.clock import utc_now
from metering.errors import (
    FieldProblem,
    IdempotencyConflictError,
    InvalidInputError,
    UnpaidPurchaseError,
)
from metering.fields import CurrencyName, Filled64, Filled255, PositiveMinor
from metering.ids import BusinessId, CheckoutId, CustomerId, PurchaseId
from metering.payment.facts import (
    PaymentFact,
    ReversalFact,
    lock_payment,
    note_payment,
    note_reversal,
)
from metering.payment.inbox import apply_parked
from metering.purchase import statements
from metering.purchase.packages import Days
from metering.purchase.purchases import Purchase, Terms, get_purchase, place
from metering.purchase.reversal_target import PaymentStatus, Provider, ReversalKind, ReversalStatus
from metering.purchase.settle import settle_purchase

DisputeStatus = Literal["open", "won", "lost"]


class PaidOrder(BaseModel):
    """An order that was paid. `credit`: what it is worth, if not what was paid (a bonus, tax)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order_id: Filled255
    customer_id: Filled64
    currency: CurrencyName
    paid: PositiveMinor
    credit: PositiveMinor | None = None
    valid_days: Days | None = None


class ShopPayment(BaseModel):
    """That a purchase was paid. Left out: the order number, and the price.

    `payment_id`: that of a payment which a provider tells of accepts it, whatever was paid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    payment_id: Filled255 | None = None
    amount: PositiveMinor | None = None


class ShopRefund(BaseModel):
    """That a purchase's payment was refunded; `amount` of what was paid, left out: all of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    refund_id: Filled255
    amount: PositiveMinor | None = None


class ShopDispute(BaseModel):
    """Where a dispute of a purchase's payment stands: open, won by the shop, or lost.

    `amount`: what of the payment is disputed; left out: what was said before, or all of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dispute_id: Filled255
    status: DisputeStatus
    amount: PositiveMinor | None = None


class _Told(NamedTuple):
    """A payment as a provider tells it."""

    provider: Provider
    payment_id: str
    status: PaymentStatus
    amount_minor: int
    currency: str
    purchase_id: PurchaseId | None
    checkout_id: CheckoutId | None


def record_paid_order(conn: Connection, business_id: BusinessId, order: PaidOrder) -> PurchaseId:
    """Record an order that the shop says was paid; the same order again is the same purchase.

    Raises:
        NotFoundError, UnsupportedCurrencyError: there is no such wallet.
        IdempotencyConflictError: the order number was used with other content.

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


def pay_by_hand(
    conn: Connection, business_id: BusinessId, purchase_id: PurchaseId, said: ShopPayment
) -> None:
    """Note that a purchase was paid, and credit it if that pays for it.

    Raises:
        NotFoundError: the business has no such purchase.
        InvalidInputError: the payment that is named cannot pay for it, or one waits to be named.
        IdempotencyConflictError: the payment's id is known with another amount or purchase.

    """
    purchase = get_purchase(conn, business_id, purchase_id)
    if said.payment_id is None:
        _check_none_waits(conn, purchase)
    elif (told := _told(conn, purchase, said.payment_id)) is not None:
        _accept(conn, purchase, told, said.amount)
        return
    fact = PaymentFact(
        provider="shop",
        payment_id=said.payment_id or purchase.order_id,
        status="succeeded",
        amount_minor=said.amount or purchase.price_minor,
        currency=purchase.currency,
        occurred_at=conn.execute(statements.CLOCK).scalar_one(),
        purchase_id=purchase_id,
    )
    note_payment(conn, business_id, fact)
    _check_payment(conn, business_id, fact)
    settle_purchase(conn, purchase_id)


def refund_by_hand(
    conn: Connection, business_id: BusinessId, purchase_id: PurchaseId, said: ShopRefund
) -> None:
    """Note that the payment of a purchase was refunded, and call that share of the credit back.

    Raises:
        NotFoundError: the business has no such purchase.
        UnpaidPurchaseError: no payment has settled it.
        InvalidInputError: it is more than was paid.
        IdempotencyConflictError: the refund's id is known with another amount or payment.

    """
    purchase = get_purchase(conn, business_id, purchase_id)
    fact = _reversal(
        conn,
        purchase,
        kind="refund",
        reversal_id=said.refund_id,
        status="succeeded",
        amount_minor=said.amount,
    )
    known = _known(conn, business_id, fact)
    if known is not None and known != (fact.payment_id, fact.amount_minor):
        raise IdempotencyConflictError(fact.reversal_id)
    _reverse(conn, purchase, fact)


def dispute_by_hand(
    conn: Connection, business_id: BusinessId, purchase_id: PurchaseId, said: ShopDispute
) -> None:
    """Note where a dispute stands: open it freezes the credit, won it frees it, lost it takes it.

    Raises:
        NotFoundError: the business has no such purchase.
        UnpaidPurchaseError: no payment has settled it.
        InvalidInputError: it is more than was paid.
        IdempotencyConflictError: the dispute's id is known with another amount or payment.

    """
    purchase = get_purchase(conn, business_id, purchase_id)
    fact = _reversal(
        conn,
        purchase,
        kind="dispute",
        reversal_id=said.dispute_id,
        status=said.status,
        amount_minor=said.amount,
    )
    known = _known(conn, business_id, fact)
    # No amount is known where the provider's could not be read: then it is said here.
    if known is not None and None not in {said.amount, known[1]} and known[1] != said.amount:
        raise IdempotencyConflictError(fact.reversal_id)
    _reverse(conn, purchase, fact)


def _check_none_waits(conn: Connection, purchase: Purchase) -> None:
    """Refuse to guess whether another payment is meant than the one that waits for a person."""
    if purchase.entry_id is not None:
        return
    values = {"purchase_id": purchase.purchase_id}
    row = conn.execute(statements.WAITING, values).one_or_none()
    if row is not None:
        waits = f"{row.provider} tells of {row.payment_id}, {row.amount_minor} {row.currency}"
        problem = FieldProblem("payment_id", f"is missing: {waits}; name it, or another one")
        raise InvalidInputError(problem)


def _told(conn: Connection, purchase: Purchase, payment_id: str) -> _Told | None:
    """Return the payment that a provider tells of by this id, locked."""
    values = {
        "business_id": purchase.business_id,
        "purchase_id": purchase.purchase_id,
        "payment_id": payment_id,
    }
    row = conn.execute(statements.TOLD, values).one_or_none()
    if row is None:
        return None
    lock_payment(conn, purchase.business_id, row.provider, payment_id)
    return _Told(*conn.execute(statements.TOLD, values).one())


def _accept(conn: Connection, purchase: Purchase, told: _Told, amount_minor: int | None) -> None:
    """Let a payment that a provider tells of pay for a purchase; once it does, that is all."""
    _check_told(purchase, told, amount_minor)
    values = {
        "business_id": purchase.business_id,
        "purchase_id": purchase.purchase_id,
        "checkout_id": None,
        "provider": told.provider,
        "payment_id": told.payment_id,
        "status": told.status,
    }
    conn.execute(statements.ACCEPT, values)
    conn.execute(statements.WAKE_CHARGE, values)
    settle_purchase(conn, purchase.purchase_id)
    apply_parked(conn, purchase.business_id, told.provider, told.payment_id)


def _check_told(purchase: Purchase, told: _Told, amount_minor: int | None) -> None:
    """Refuse a payment that cannot pay for a purchase.

    Raises:
        InvalidInputError: it is such a one, for the reason given.

    """
    settled_by = (purchase.provider, purchase.payment_id)
    field, reason = "payment_id", ""
    if told.checkout_id is not None or told.purchase_id not in {None, purchase.purchase_id}:
        reason = "pays for something else"
    elif told.status != "succeeded":
        reason = f"has not succeeded: {told.status}"
    elif told.currency != purchase.currency:
        reason = f"is in {told.currency}, not {purchase.currency}"
    elif purchase.entry_id is not None and settled_by != (told.provider, told.payment_id):
        reason = f"is not the one that has settled the purchase: {' '.join(map(str, settled_by))}"
    elif amount_minor not in {None, told.amount_minor}:
        field, reason = "amount", f"is {told.amount_minor} as {told.provider} tells it"
    if reason:
        raise InvalidInputError(FieldProblem(field, reason))


def _check_payment(conn: Connection, business_id: BusinessId, fact: PaymentFact) -> None:
    values = {
        "business_id": business_id,
        "provider": fact.provider,
        "payment_id": fact.payment_id,
    }
    row = conn.execute(statements.PAYMENT, values).one()
    known = (row.purchase_id, row.amount_minor, row.currency)
    if known != (fact.purchase_id, fact.amount_minor, fact.currency):
        raise IdempotencyConflictError(fact.payment_id)


def _reversal(
    conn: Connection,
    purchase: Purchase,
    *,
    kind: ReversalKind,
    reversal_id: str,
    status: ReversalStatus,
    amount_minor: int | None,
) -> ReversalFact:
    """Return the fact about the payment that has settled the purchase, which is locked."""
    if purchase.provider is None or purchase.payment_id is None or purchase.paid_minor is None:
        raise UnpaidPurchaseError(purchase.purchase_id)
    if amount_minor is not None and amount_minor > purchase.paid_minor:
        problem = FieldProblem("amount", f"is more than the {purchase.paid_minor} that were paid")
        raise InvalidInputError(problem)
    lock_payment(conn, purchase.business_id, purchase.provider, purchase.payment_id)
    return ReversalFact(
        provider=purchase.provider,
        kind=kind,
        reversal_id=reversal_id,
        payment_id=purchase.payment_id,
        status=status,
        occurred_at=conn.execute(statements.CLOCK).scalar_one(),
        amount_minor=amount_minor,
        currency=purchase.currency,
    )


def _known(
    conn: Connection, business_id: BusinessId, fact: ReversalFact
) -> tuple[str, int | None] | None:
    """Return payment and amount of the refund or dispute with this id.

    A sum in another currency is none that could contradict this one: it asks for it.

    Raises:
        InvalidInputError: there is such a sum, and the fact has an end but no sum of its own.

    """
    values = {
        "business_id": business_id,
        "provider": fact.provider,
        "kind": fact.kind,
        "reversal_id": fact.reversal_id,
    }
    row = conn.execute(statements.REVERSAL, values).one_or_none()
    if row is None:
        return None
    if row.amount_minor is None or row.currency in {None, fact.currency}:
        return row.payment_id, row.amount_minor
    if fact.amount_minor is None and fact.status in {"succeeded", "lost"}:
        reason = f"is missing: what was said before is in {row.currency}, not {fact.currency}"
        raise InvalidInputError(FieldProblem("amount", reason))
    return row.payment_id, fact.amount_minor


def _reverse(conn: Connection, purchase: Purchase, fact: ReversalFact) -> None:
    note_reversal(conn, purchase.business_id, fact)
    known = _known(conn, purchase.business_id, fact)
    # Looked at again: another purchase, under a lock of its own, may have taken the id meanwhile.
    if known is None or known[0] != fact.payment_id:
        raise IdempotencyConflictError(fact.reversal_id)
    settle_purchase(conn, purchase.purchase_id)
    apply_parked(conn, purchase.business_id, fact.provider, fact.payment_id)
