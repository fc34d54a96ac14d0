"""Bring the ledger to what a purchase's facts say: credited once, called back as far as asked.

It compares what ought to be with what is, under the purchase's lock, and posts the difference. So
it may be run at any time and any number of times, and it does not matter in which order the facts
came. Locks: the purchase first, then its wallet.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from metering.errors import NotFoundError
from metering.ids import LotId, PurchaseId, WalletId
from metering.ledger.entry import EventType, LotMove, LotTerms, Posting
from metering.ledger.lots.freeze import freeze_lot
from metering.ledger.lots.restore import Restorable, restoration
from metering.ledger.post import open_book, post
from metering.ledger.wallets import wallet_of
from metering.purchase import statements
from metering.purchase.notices import tell_of_purchase
from metering.purchase.purchases import Purchase, purchase_of
from metering.purchase.reversal_target import Provider, Reversal, Target, status_of, target_of

# How long credit counts that is given back and whose own lot has expired meanwhile.
RESTORED_VALID_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class _Payment:
    """A payment that has succeeded."""

    provider: Provider
    payment_id: str
    amount_minor: int
    currency: str
    occurred_at: datetime
    is_accepted: bool

    def is_of(self, purchase: Purchase) -> bool:
        """Tell whether it has settled the purchase, which the shop may have said before."""
        by_shop = "shop" in {self.provider, purchase.provider}
        is_same = by_shop or self.provider == purchase.provider
        return is_same and self.payment_id == purchase.payment_id


def settle_purchase(conn: Connection, purchase_id: PurchaseId) -> bool:
    """Let the ledger follow the facts of a purchase; return whether anything was posted.

    Raises:
        NotFoundError: there is no such purchase.

    """
    purchase = _locked(conn, purchase_id)
    wallet = wallet_of(conn, purchase.business_id, purchase.customer_id, purchase.currency)
    before = purchase
    if purchase.entry_id is None:
        purchase = _credit(conn, purchase, wallet.wallet_id)
    if purchase.entry_id is not None:
        purchase = _reverse(conn, purchase, wallet.wallet_id)
    conn.execute(
        statements.SETTLED,
        {
            "purchase_id": purchase_id,
            "status": purchase.status,
            "provider": purchase.provider,
            "payment_id": purchase.payment_id,
            "paid_minor": purchase.paid_minor,
            "paid_at": purchase.paid_at,
            "entry_id": purchase.entry_id,
            "refunded_minor": purchase.refunded_minor,
            "lost_minor": purchase.lost_minor,
            "shortfall_minor": purchase.shortfall_minor,
            "failure": purchase.failure,
        },
    )
    tell_of_purchase(conn, before, purchase)
    return (before.entry_id, before.reversed_minor) != (purchase.entry_id, purchase.reversed_minor)


def due_purchases(conn: Connection, page: int) -> list[PurchaseId]:
    """Return purchases whose facts the ledger has not followed yet, the longest waiting first."""
    return list(conn.execute(statements.DUE, {"page": page}).scalars())


def _locked(conn: Connection, purchase_id: PurchaseId) -> Purchase:
    row = conn.execute(statements.LOCK, {"purchase_id": purchase_id}).one_or_none()
    if row is None:
        raise NotFoundError("purchase", purchase_id)
    return purchase_of(row)


# --- in -------------------------------------------------------------------------------------------


def _credit(conn: Connection, purchase: Purchase, wallet_id: WalletId) -> Purchase:
    """Credit the purchase if a payment of enough has succeeded."""
    payment = _payment(conn, purchase)
    if payment is None:
        return _unpaid(conn, purchase)
    now = conn.execute(statements.CLOCK).scalar_one()
    expires_at = purchase.valid_days and now + timedelta(days=purchase.valid_days)
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
            expires_at=expires_at or None,
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


def _payment(conn: Connection, purchase: Purchase) -> _Payment | None:
    """Return the first payment that pays for all of it, or that a person has accepted.

    Put aside those that do not.
    """
    found = None
    for row in conn.execute(statements.SUCCEEDED, {"purchase_id": purchase.purchase_id}):
        payment = _Payment(*row)
        if payment.currency != purchase.currency:
            _park(conn, purchase, payment, "other_currency")
        elif payment.amount_minor < purchase.price_minor and not payment.is_accepted:
            _park(conn, purchase, payment, "underpaid")
        else:
            found = found or payment
    return found


def _park(conn: Connection, purchase: Purchase, payment: _Payment, reason: str) -> None:
    values = {
        "business_id": purchase.business_id,
        "provider": payment.provider,
        "payment_id": payment.payment_id,
        "reason": reason,
    }
    conn.execute(statements.PARK_PAYMENT, values)


def _unpaid(conn: Connection, purchase: Purchase) -> Purchase:
    """Return the purchase as failed if every payment of it has failed, else as pending.

    While a page of the provider is open, the customer may take another card there.
    A top-up that has failed stays so until it is paid: its charge has ended, so nobody would look
    what becomes of it, and the next one may be under way.
    """
    if purchase.origin == "top_up" and purchase.status == "failed":
        return purchase
    rows = conn.execute(statements.UNSUCCESSFUL, {"purchase_id": purchase.purchase_id}).all()
    has_failed = bool(rows) and all(row.status == "failed" for row in rows)
    values = {"purchase_id": purchase.purchase_id}
    if has_failed and not conn.execute(statements.HAS_PAGE, values).scalar_one():
        return replace(purchase, status="failed", failure=rows[0].failure or "payment failed")
    return replace(purchase, status="pending", failure=None)


# --- back out -------------------------------------------------------------------------------------


def _reverse(conn: Connection, purchase: Purchase, wallet_id: WalletId) -> Purchase:
    """Take back or give back what refunds and disputes of its payment call for; freeze or free."""
    purchase = _paid_by(conn, purchase)
    rows = conn.execute(
        statements.REVERSALS,
        {
            "business_id": purchase.business_id,
            "provider": purchase.provider,
            "payment_id": purchase.payment_id,
            "currency": purchase.currency,
        },
    )
    reversals = [Reversal(*row) for row in rows]
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
    """Put aside what was paid beside the payment that has settled a purchase.

    Where the shop has named a payment that its provider tells of later, it is the provider's, so
    that its refunds and disputes count.
    """
    for row in conn.execute(statements.SUCCEEDED, {"purchase_id": purchase.purchase_id}):
        payment = _Payment(*row)
        if not payment.is_of(purchase) or payment.currency != purchase.currency:
            _park(conn, purchase, payment, "paid_twice")
        elif purchase.provider == "shop":
            paid_minor = payment.amount_minor
            purchase = replace(purchase, provider=payment.provider, paid_minor=paid_minor)
    return purchase


def _own_lot(conn: Connection, purchase: Purchase, wallet_id: WalletId) -> LotId | None:
    """Return the lot of a purchase; one from before there were lots has none."""
    values = {"wallet_id": wallet_id, "entry_id": purchase.entry_id}
    return conn.execute(statements.LOT_OF_ENTRY, values).scalar_one_or_none()


def _move(conn: Connection, purchase: Purchase, wallet_id: WalletId, target: Target) -> int:
    """Post what is to be taken or given back; return what stays untaken."""
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

    What of its own lot has expired is gone already: it is not taken once more from other lots.
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
    """Return how much of the purchase's own lot has expired and was not counted for it before."""
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
    """Give credit back to the lots that it was taken from."""
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
    terms = LotTerms(source="refund", expires_at=book.now + timedelta(days=RESTORED_VALID_DAYS))
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
