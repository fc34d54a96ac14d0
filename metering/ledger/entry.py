"""What the ledger speaks of: a wallet under lock, what is asked of it, the entry that results."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Literal, NamedTuple

import orjson

from metering.clock import to_wire
from metering.ids import BatchId, BusinessId, Currency, CustomerId, EntryId, WalletId
from metering.money import ZERO

EventType = Literal[
    "payment",
    "payment_reversal",
    "refund",
    "refund_reversal",
    "dispute",
    "dispute_reversal",
    "merchant_adjustment",
]
Kind = Literal["usage", "manual", "purchase", "correction"]


class Wallet(NamedTuple):
    """A wallet as it is under lock. `balance_minor` may be below zero: that is debt."""

    wallet_id: WalletId
    business_id: BusinessId
    customer_id: CustomerId
    currency: Currency
    balance_minor: int
    remainder: Decimal
    version: int
    chain: bytes
    overdraft_limit_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """What is to be written to a wallet.

    Usage gives `exact_cost` (minor units with decimals) and leaves `amount_minor` to the ledger,
    which carries what is below a minor unit. All else gives `amount_minor` > 0.
    """

    wallet_id: WalletId
    kind: Kind
    is_credit: bool
    amount_minor: int = 0
    exact_cost: Decimal = ZERO
    event_type: EventType = "merchant_adjustment"
    reason: str | None = None
    reference: str | None = None
    idempotency_key: str | None = None
    request_digest: bytes | None = None
    batch_id: BatchId | None = None
    event_count: int = 0
    metadata_json: str = "{}"


class Entry(NamedTuple):
    """One immutable line of a wallet's history; proves the one before it.

    A tuple: a frozen data class of so many fields takes four times as long to make.
    """

    entry_id: EntryId
    wallet_id: WalletId
    version: int
    business_id: BusinessId
    customer_id: CustomerId
    currency: Currency
    amount_minor: int
    is_credit: bool
    before_minor: int
    after_minor: int
    event_type: EventType
    kind: Kind
    reason: str | None
    reference: str | None
    idempotency_key: str | None
    request_digest: bytes | None
    batch_id: BatchId | None
    event_count: int
    exact_cost: Decimal
    remainder_before: Decimal
    remainder_after: Decimal
    metadata_json: str
    created_at: datetime
    chain: bytes = b""


def chain_digest(previous: bytes, entry: Entry) -> bytes:
    """Return the SHA-256 of the entry and of the digest before it: an edit anywhere shows.

    Every stored column takes part, as a JSON array, so that nothing can move between two columns.
    """
    columns = (
        *entry[:15],
        None if entry.request_digest is None else entry.request_digest.hex(),
        entry.batch_id,
        entry.event_count,
        format(entry.exact_cost, "f"),
        format(entry.remainder_before, "f"),
        format(entry.remainder_after, "f"),
        entry.metadata_json,
        to_wire(entry.created_at),
    )
    return sha256(previous + orjson.dumps(columns)).digest()
