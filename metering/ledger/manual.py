"""Credits and debits by hand, once per idempotency key."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from sqlalchemy import Connection

from metering import locks
from metering.clock import Moment, to_wire
from metering.db import database_now
from metering.errors import FieldProblem, InvalidInputError
from metering.fields import (
    CurrencyName,
    Filled255,
    Metadata,
    Minor,
    PositiveMinor,
    Text255,
    Text500,
)
from metering.idempotency import digest_of, first_answer
from metering.ids import BusinessId, CustomerId, EntryId, WalletId
from metering.ledger import statements
from metering.ledger.entry import PRIORITY_DEFAULT, EventType, Kind, LotTerms, Posting, Priority
from metering.ledger.post import post
from metering.ledger.wallets import wallet_of

# Moments that can be converted to UTC from any time zone.
_EARLIEST: Final = datetime(1, 1, 2, tzinfo=UTC)
_LATEST: Final = datetime(9999, 12, 30, tzinfo=UTC)
# The terms of a lot, which only a credit has.
_TERMS: Final = ("expires_at", "source", "priority", "cost_basis")


class ManualEntry(BaseModel):
    """A credit or debit by hand. `amount` is an integer of minor units.

    Only for a credit: when it expires (default: never), its source (default: manual), its priority
    (0 is consumed first; default: 50), and the price that was paid for it in minor units.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    amount: PositiveMinor
    currency: CurrencyName
    entry_type: Literal["credit", "debit"]
    idempotency_key: Filled255 | None = None
    reason: Text500 | None = None
    reference: Text255 | None = None
    metadata: Metadata = {}
    expires_at: Moment | None = None
    source: Literal["paid", "promotional", "manual"] | None = None
    priority: Priority | None = None
    cost_basis: Minor | None = None

    @field_validator(*_TERMS)
    @classmethod
    def _is_of_a_credit(cls, value: object, info: ValidationInfo) -> object:
        if value is not None and info.data.get("entry_type") == "debit":
            raise ValueError("is for a credit only")
        return value

    @field_validator("expires_at")
    @classmethod
    def _is_in_reach(cls, value: datetime | None) -> datetime | None:
        if value is not None and not _EARLIEST <= value <= _LATEST:
            raise ValueError("is out of range")
        return value


@dataclass(frozen=True, slots=True)
class Entered:
    """The entry of a request. `replayed` if an earlier request wrote it."""

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
    """Write the entry once per idempotency key. Requests with one key wait for each other.

    Raises: NotFoundError or UnsupportedCurrencyError if there is no such wallet.
    IdempotencyConflictError if the key was used with other content. InvalidInputError if the credit
    would have expired already. InsufficientFundsError if a debit exceeds balance and overdraft.
    """
    wallet = wallet_of(conn, business_id, customer_id, request.currency)
    digest = _digest(customer_id, request, kind)
    if (earlier := entered_before(conn, business_id, request.idempotency_key, digest)) is not None:
        return earlier
    _check_expiry(conn, request)
    posting = _posting(wallet.wallet_id, request, digest, kind, event_type)
    (entry,) = post(conn, [posting])
    return Entered(entry.entry_id, entry.wallet_id, replayed=False)


def entered_before(
    conn: Connection, business_id: BusinessId, key: str | None, digest: bytes
) -> Entered | None:
    """Return the entry that an earlier request with this key made; see `first_answer`."""
    row = first_answer(
        conn, business_id, key, digest, lock=locks.ENTRY_KEY, find=statements.ENTRY_BY_KEY
    )
    return None if row is None else Entered(row.entry_id, row.wallet_id, replayed=True)


def _check_expiry(conn: Connection, request: ManualEntry) -> None:
    """Refuse credit that has expired. A repetition is not checked: its first request was."""
    if request.expires_at is not None and request.expires_at <= database_now(conn):
        raise InvalidInputError(FieldProblem("expires_at", "must be in the future"))


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
        lot_terms=_lot_terms(request),
    )


def _lot_terms(request: ManualEntry) -> LotTerms:
    return LotTerms(
        source=request.source or "manual",
        priority=PRIORITY_DEFAULT if request.priority is None else request.priority,
        expires_at=request.expires_at,
        cost_basis_minor=request.cost_basis,
    )


def _digest(customer_id: CustomerId, request: ManualEntry, kind: Kind) -> bytes:
    """Return the digest of the request.

    Only given terms take part, so that digests from before there were terms still match.
    """
    terms = request.model_dump(include=set(_TERMS), exclude_none=True)
    if request.expires_at is not None:
        terms["expires_at"] = to_wire(request.expires_at)
    fields = request.model_dump(exclude=set(_TERMS))
    return digest_of({"customer_id": customer_id, "kind": kind, **fields, **terms})
