"""Refund a debit whose service was not delivered: back into the lots that it used.

All refunds of a debit together give back at most the debit. A checkout that releases its credit
writes the same kind of entry, with the debit as its reference, so it counts too.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from metering.errors import NotRefundableError, RefundExceedsDebitError
from metering.fields import Filled255, PositiveMinor, Text500
from metering.idempotency import digest_of
from metering.ids import BusinessId, CustomerId, EntryId, WalletId
from metering.ledger.entry import Entry, Kind, LotTerms, Posting
from metering.ledger.history import get_entry
from metering.ledger.lots.restore import Restorable, restoration, restored_terms
from metering.ledger.manual import Entered, entered_before
from metering.ledger.post import open_book, post
from metering.purchase import statements

# Debits that paid for something. The others follow from a payment or a deadline, and are undone
# there: a won dispute, for example, gives its debit back.
REFUNDABLE: Final[frozenset[Kind]] = frozenset({"usage", "manual", "correction", "checkout"})


class DebitRefund(BaseModel):
    """How much of a debit to give back, in minor units (default: the rest of it), and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    amount: PositiveMinor | None = None
    reason: Text500 | None = None
    idempotency_key: Filled255 | None = None


def refund_debit(
    conn: Connection,
    business_id: BusinessId,
    customer_id: CustomerId,
    entry_id: EntryId,
    request: DebitRefund,
) -> Entered:
    """Credit a debit back to the wallet, once per idempotency key.

    The part from lots that have expired meanwhile becomes a new lot, for some days.

    Raises: NotFoundError if the customer has no such entry. IdempotencyConflictError if the key was
    used with other content. NotRefundableError if the entry is a credit, or a debit that paid for
    nothing. RefundExceedsDebitError if the debit has less than the amount, or nothing, left.
    """
    debit = get_entry(conn, business_id, entry_id, customer_id=customer_id)
    digest = digest_of({"kind": "refund", "entry_id": entry_id, **request.model_dump()})
    if (earlier := entered_before(conn, business_id, request.idempotency_key, digest)) is not None:
        return earlier
    _check_refundable(debit)
    # The lock of the wallet comes first: of two refunds the second sees the first.
    now = open_book(conn, debit.wallet_id).now
    credits_, left_minor = given_back(conn, debit.wallet_id, entry_id, debit.amount_minor)
    amount_minor = left_minor if request.amount is None else request.amount
    if not 0 < amount_minor <= left_minor:
        raise RefundExceedsDebitError(debit.amount_minor, left_minor)
    back = restoration(conn, Restorable([entry_id], credits_), amount_minor, now)
    key = request.idempotency_key
    posting = Posting(
        wallet_id=debit.wallet_id,
        kind="refund",
        is_credit=True,
        amount_minor=amount_minor,
        event_type="merchant_adjustment",
        reason=request.reason,
        reference=entry_id,
        idempotency_key=key,
        request_digest=None if key is None else digest,
        lot_moves=back,
        lot_terms=_terms(debit, now),
    )
    (entry,) = post(conn, [posting])
    return Entered(entry.entry_id, entry.wallet_id, replayed=False)


def _check_refundable(debit: Entry) -> None:
    if debit.is_credit:
        raise NotRefundableError("a credit")
    if debit.kind not in REFUNDABLE:
        raise NotRefundableError(f"a debit of kind {debit.kind}")


def given_back(
    conn: Connection, wallet_id: WalletId, debit_id: EntryId, debit_minor: int
) -> tuple[Sequence[EntryId], int]:
    """Return the credits that gave some of a debit back, and how much of it is left."""
    refunds = conn.execute(statements.REFUNDS, {"entry_id": debit_id, "wallet_id": wallet_id}).all()
    left_minor = debit_minor - sum(refund.amount_minor for refund in refunds)
    return [refund.entry_id for refund in refunds], left_minor


def _terms(debit: Entry, now: datetime) -> LotTerms:
    """Return the terms of the lot for the part that goes back to no lot.

    A debit from before there were lots used credit without an expiry, so its refund has none.
    """
    if debit.debited_before_minor is None:
        return LotTerms(source="refund")
    return restored_terms(now)
