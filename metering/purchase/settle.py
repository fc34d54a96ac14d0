"""Settle a purchase: make the ledger match its payments, refunds and disputes.

The credit that should be there is compared with the credit that is, under the purchase's lock, and
the difference is posted. So it may run at any time, any number of times, and facts may arrive in
any order. Locks: the purchase first, then its wallet.
"""

from dataclasses import asdict, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from metering.db import database_now, rows
from metering.ids import LotId, PurchaseId, WalletId
from metering.ledger.entry import EventType, LotMove, LotTerms, Posting
from metering.ledger.lots.freeze import freeze_lot
from metering.ledger.lots.restore import Restorable, restoration, restored_terms
from metering.ledger.post import open_book, post
from metering.ledger.wallets import wallet_of
from metering.purchase import statements
from metering.purchase.payments import Payment, choose_payment, park_payment, payments_of
from metering.purchase.purchases import Purchase, lock_purchase
from metering.purchase.reversal_target import Reversal, Target, status_of, target_of
from metering.webhook.outbox import Json, Notice, WebhookType, publish


def settle_purchase(conn: Connection, purchase_id: PurchaseId) -> bool:
    """Settle a purchase; tell whether anything was posted.

    Raises: NotFoundError if there is no such purchase.
    """
    before = after = lock_purchase(conn, purchase_id)
    wallet = wallet_of(conn, before.business_id, before.customer_id, before.currency)
    if after.entry_id is None:
        after = _credit(conn, after, wallet.wallet_id)
    if after.entry_id is not None:
        after = _reverse(conn, after, wallet.wallet_id)
    conn.execute(statements.SETTLED, asdict(after))
    _publish_changes(conn, before, after)
    return (before.entry_id, before.reversed_minor) != (after.entry_id, after.reversed_minor)


def due_purchases(conn: Connection, page: int) -> list[PurchaseId]:
    """Return purchases with facts that are not settled yet, the longest waiting first."""
    return list(conn.execute(statements.DUE, {"page": page}).scalars())


# --- in -------------------------------------------------------------------------------------------


def _credit(conn: Connection, purchase: Purchase, wallet_id: WalletId) -> Purchase:
    """Credit the purchase if a large enough payment has succeeded."""
    payment = choose_payment(
        conn,
        payments_of(conn, statements.SUCCEEDED, purchase_id=purchase.purchase_id),
        price_minor=purchase.price_minor,
        currency=purchase.currency,
    )
    if payment is None:
        return _unpaid(conn, purchase)
    expires_at: datetime | None = None
    if purchase.valid_days is not None:
        expires_at = database_now(conn) + timedelta(days=purchase.valid_days)
    posting = Posting(
        wallet_id=wallet_id,
        kind="purchase",
        is_credit=True,
        amount_minor=purchase.credit_minor,
        event_type="payment",
        reason=f"order {purchase.order_id}",
        reference=purchase.purchase_id,
        lot_terms=LotTerms(
            source="paid",
            priority=purchase.priority,
            expires_at=expires_at,
            cost_basis_minor=payment.amount_minor,
        ),
    )
    (entry,) = post(conn, [posting])
    return replace(
        purchase,
        status="settled",
        entry_id=entry.entry_id,
        provider=payment.provider,
        payment_id=payment.payment_id,
        paid_minor=payment.amount_minor,
        paid_at=payment.occurred_at,
        failure=None,
    )


def _unpaid(conn: Connection, purchase: Purchase) -> Purchase:
    """Return the purchase as failed if all its payments have failed, else as pending.

    While a hosted page is open, the customer may take another card there. A failed top-up stays
    failed until it is paid: its charge has ended, so nothing would end it again, and the next
    top-up may be running.
    """
    if purchase.origin == "top_up" and purchase.status == "failed":
        return purchase
    values = {"purchase_id": purchase.purchase_id}
    others = payments_of(conn, statements.UNSUCCESSFUL, **values)
    has_failed = bool(others) and all(each.status == "failed" for each in others)
    if has_failed and not conn.execute(statements.HAS_PAGE, values).scalar_one():
        return replace(purchase, status="failed", failure=others[0].failure or "payment failed")
    return replace(purchase, status="pending", failure=None)


# --- back out -------------------------------------------------------------------------------------


def reversals_of(conn: Connection, purchase: Purchase) -> list[Reversal]:
    """Return the refunds and disputes of the payment that settled a purchase."""
    values = {
        "business_id": purchase.business_id,
        "provider": purchase.provider,
        "payment_id": purchase.payment_id,
        "currency": purchase.currency,
    }
    return rows(Reversal, conn.execute(statements.REVERSALS, values))


def _reverse(conn: Connection, purchase: Purchase, wallet_id: WalletId) -> Purchase:
    """Take or give back what the refunds and disputes of its payment require; freeze or free."""
    purchase = _paid_by(conn, purchase)
    reversals = reversals_of(conn, purchase)
    target = target_of(purchase.credit_minor, purchase.paid_minor or 0, reversals)
    shortfall = _move(conn, purchase, wallet_id, target)
    lot_id = _own_lot(conn, purchase, wallet_id)
    if lot_id is not None:
        freeze_lot(conn, wallet_id, lot_id, is_frozen=target.is_frozen)
    return replace(
        purchase,
        status=status_of(purchase.credit_minor, target),
        refunded_minor=target.refunded_minor,
        lost_minor=target.lost_minor,
        shortfall_minor=shortfall,
    )


def _paid_by(conn: Connection, purchase: Purchase) -> Purchase:
    """Park every other payment than the one that paid for the purchase.

    If the shop reported a payment before its provider did, the purchase now has the provider's, so
    that its refunds and disputes count.
    """
    for payment in payments_of(conn, statements.SUCCEEDED, purchase_id=purchase.purchase_id):
        if not _has_paid(payment, purchase) or payment.currency != purchase.currency:
            park_payment(conn, payment.key, "paid_twice")
        elif purchase.provider == "shop":
            paid_minor = payment.amount_minor
            purchase = replace(purchase, provider=payment.provider, paid_minor=paid_minor)
    return purchase


def _has_paid(payment: Payment, purchase: Purchase) -> bool:
    """Tell whether a payment has paid for a purchase; the shop may have reported it first."""
    by_shop = "shop" in {payment.provider, purchase.provider}
    is_same = by_shop or payment.provider == purchase.provider
    return is_same and payment.payment_id == purchase.payment_id


def _own_lot(conn: Connection, purchase: Purchase, wallet_id: WalletId) -> LotId | None:
    """Return the lot of a purchase. Returns None if it is older than lots."""
    values = {"wallet_id": wallet_id, "entry_id": purchase.entry_id}
    return conn.execute(statements.LOT_OF_ENTRY, values).scalar_one_or_none()


def _move(conn: Connection, purchase: Purchase, wallet_id: WalletId, target: Target) -> int:
    """Post the difference to the target; return the shortfall: what could not be taken."""
    more = target.reversed_minor - purchase.reversed_minor
    by_refund = target.refunded_minor - purchase.refunded_minor
    if more > 0:
        event_type: EventType = "refund" if by_refund > 0 else "dispute"
        return purchase.shortfall_minor + _take(conn, purchase, wallet_id, more, event_type)
    if more < 0:
        event_type = "refund_reversal" if by_refund < 0 else "dispute_reversal"
        forgiven = min(-more, purchase.shortfall_minor)
        _give(conn, purchase, wallet_id, -more - forgiven, event_type)
        return purchase.shortfall_minor - forgiven
    return purchase.shortfall_minor


def _take(
    conn: Connection,
    purchase: Purchase,
    wallet_id: WalletId,
    amount_minor: int,
    event_type: EventType,
) -> int:
    """Take credit back: from its own lot, then from others, then as debt; return the shortfall.

    The expired part of its own lot is gone already, so it is not taken again from other lots.
    """
    book = open_book(conn, wallet_id)
    lot_id = _own_lot(conn, purchase, wallet_id)
    own = min(amount_minor, book.left(lot_id)) if lot_id in book.lots else 0
    rest = amount_minor - own
    shortfall = min(rest, _expired(conn, purchase, wallet_id, lot_id)) if rest else 0
    if _stops_at_zero(conn, purchase):
        shortfall += max(0, rest - shortfall - book.spendable_without(lot_id))
    if amount_minor > shortfall:
        moves = (LotMove(lot_id, own),) if own and lot_id is not None else ()
        posting = _reversal(purchase, wallet_id, amount_minor - shortfall, event_type)
        post(conn, [replace(posting, lot_moves=moves, may_owe=True)])
    return shortfall


def _expired(
    conn: Connection, purchase: Purchase, wallet_id: WalletId, lot_id: LotId | None
) -> int:
    """Return how much of the purchase's own lot has expired and is not in its shortfall yet."""
    values = {"wallet_id": wallet_id, "lot_id": lot_id}
    expired_minor = conn.execute(statements.EXPIRED_OF_LOT, values).scalar_one()
    return max(0, int(expired_minor) - purchase.shortfall_minor)


def _give(
    conn: Connection,
    purchase: Purchase,
    wallet_id: WalletId,
    amount_minor: int,
    event_type: EventType,
) -> None:
    """Give credit back to the lots from which it was taken."""
    if amount_minor == 0:
        return
    book = open_book(conn, wallet_id)
    taken = conn.execute(statements.REVERSING, {"purchase_id": purchase.purchase_id}).all()
    restorable = Restorable(
        debits=[row.entry_id for row in taken if not row.is_credit],
        credits=[row.entry_id for row in taken if row.is_credit],
    )
    posting = _reversal(purchase, wallet_id, amount_minor, event_type)
    back = restoration(conn, restorable, amount_minor, book.now)
    terms = restored_terms(book.now)
    post(conn, [replace(posting, is_credit=True, lot_moves=back, lot_terms=terms)])


def _reversal(
    purchase: Purchase, wallet_id: WalletId, amount_minor: int, event_type: EventType
) -> Posting:
    return Posting(
        wallet_id=wallet_id,
        kind="reversal",
        is_credit=False,
        amount_minor=amount_minor,
        event_type=event_type,
        reason=f"{event_type.replace('_', ' ')} of order {purchase.order_id}",
        reference=purchase.purchase_id,
    )


def _stops_at_zero(conn: Connection, purchase: Purchase) -> bool:
    values = {"business_id": purchase.business_id}
    policy = conn.execute(statements.REVERSAL_POLICY, values).scalar_one()
    return bool(policy == "stop_at_zero")


# --- webhooks -------------------------------------------------------------------------------------


def _publish_changes(conn: Connection, before: Purchase, after: Purchase) -> None:
    """Write to the outbox that a purchase has succeeded, failed or been reversed."""
    types: list[WebhookType] = []
    if before.entry_id is None and after.entry_id is not None:
        types.append("purchase.succeeded")
    if after.status == "failed" and before.status != "failed":
        types.append("purchase.failed")
    if after.reversed_minor != before.reversed_minor:
        types.append("purchase.reversed")
    if types:
        notices = [Notice(after.business_id, type_, _shown(after)) for type_ in types]
        publish(conn, notices, database_now(conn))


def _shown(purchase: Purchase) -> dict[str, Json]:
    return {
        "purchase_id": purchase.purchase_id,
        "customer_id": purchase.customer_id,
        "currency": purchase.currency,
        "order_id": purchase.order_id,
        "origin": purchase.origin,
        "package_id": purchase.package_id,
        "status": purchase.status,
        "price": purchase.price_minor,
        "credit": purchase.credit_minor,
        "paid": purchase.paid_minor,
        "reversed": purchase.reversed_minor,
        "shortfall": purchase.shortfall_minor,
        "provider": purchase.provider,
        "payment_id": purchase.payment_id,
        "ledger_entry_id": purchase.entry_id,
        "failure": purchase.failure,
    }
