"""Credit and debit by hand: with a reason, and an idempotency key that is kept for ever."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Connection

from metering.errors import IdempotencyConflictError
from metering.ids import BusinessId, CustomerId, EntryId, WalletId
from metering.ledger import statements
from metering.ledger.accounts import Metadata, wallet_of
from metering.ledger.entry import EventType, Kind, Posting
from metering.ledger.post import post
from metering.money import INT64_MAX
from metering.text import FILLED, NO_NUL


class ManualEntry(BaseModel):
    """What is asked for. `amount` in minor units; a float, a text or a bool is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    amount: Annotated[int, Field(strict=True, gt=0, le=INT64_MAX)]
    currency: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=10)]
    entry_type: Literal["credit", "debit"]
    idempotency_key: (
        Annotated[str, StringConstraints(strict=True, max_length=255, pattern=FILLED)] | None
    ) = None
    reason: Annotated[str, StringConstraints(max_length=500, pattern=NO_NUL)] | None = None
    reference: Annotated[str, StringConstraints(max_length=255, pattern=NO_NUL)] | None = None
    metadata: Metadata = {}


@dataclass(frozen=True, slots=True)
class Entered:
    """The entry that the request made; `replayed`: it was made by an earlier one."""

    entry_id: EntryId
    wallet_id: WalletId
    replayed: bool


def enter(
    conn: Connection,
    business_id: BusinessId,
    customer_id: CustomerId,
    request: ManualEntry,
    *,
    kind: Kind = "manual",
    event_type: EventType = "merchant_adjustment",
) -> Entered:
    """Write the entry once per idempotency key.

    Of many at once with one key, one writes and the others, which wait for it, see what it wrote.
    The unique index stands behind that.

    Raises:
        NotFoundError: the business has no such customer.
        UnsupportedCurrencyError: the customer has no wallet in the currency.
        IdempotencyConflictError: the key was used with other content.
        InsufficientFundsError: a debit beyond balance and overdraft limit.

    """
    wallet = wallet_of(conn, business_id, customer_id, request.currency)
    digest = _digest(customer_id, request, kind)
    if request.idempotency_key is not None:
        earlier = _entered_before(conn, business_id, request.idempotency_key, digest)
        if earlier is not None:
            return earlier
    posting = _posting(wallet.wallet_id, request, digest, kind, event_type)
    (entry,) = post(conn, [posting])
    return Entered(entry.entry_id, entry.wallet_id, replayed=False)


def _entered_before(
    conn: Connection, business_id: BusinessId, key: str, digest: bytes
) -> Entered | None:
    values = {"business_id": business_id, "idempotency_key": key}
    conn.execute(statements.LOCK_KEY, values)
    row = conn.execute(statements.ENTRY_BY_KEY, values).one_or_none()
    if row is None:
        return None
    if bytes(row.request_digest) != digest:
        raise IdempotencyConflictError(key)
    return Entered(row.entry_id, row.wallet_id, replayed=True)


def _posting(
    wallet_id: WalletId, request: ManualEntry, digest: bytes, kind: Kind, event_type: EventType
) -> Posting:
    key = request.idempotency_key
    return Posting(
        wallet_id=wallet_id,
        kind=kind,
        is_credit=request.entry_type == "credit",
        amount_minor=request.amount,
        event_type=event_type,
        reason=request.reason,
        reference=request.reference,
        idempotency_key=key,
        request_digest=None if key is None else digest,
        metadata_json=orjson.dumps(request.metadata, option=orjson.OPT_SORT_KEYS).decode(),
    )


def _digest(customer_id: CustomerId, request: ManualEntry, kind: Kind) -> bytes:
    """Return what tells a repetition from a conflict: everything that was asked for."""
    asked = {"customer_id": customer_id, "kind": kind, **request.model_dump()}
    return blake2b(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
