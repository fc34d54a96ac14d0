"""The values of the ledger: a locked wallet, a lot, a posting, and the entry that results."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Annotated, Final, Literal, NamedTuple

import orjson
from pydantic import Field

from metering.clock import to_wire
from metering.ids import BatchId, BusinessId, Currency, CustomerId, EntryId, LotId, WalletId
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
Kind = Literal[
    "usage", "manual", "purchase", "correction", "expiry", "reversal", "refund", "checkout"
]
# Where the credit of a lot came from.
Source = Literal["paid", "promotional", "refund", "manual"]
PRIORITY_DEFAULT: Final = 50
_FOREVER: Final = datetime.max.replace(tzinfo=UTC)
# Lots of a smaller priority are consumed first.
Priority = Annotated[int, Field(strict=True, ge=0, le=100)]


class Wallet(NamedTuple):
    """A locked wallet. A balance below zero is debt."""

    wallet_id: WalletId
    business_id: BusinessId
    customer_id: CustomerId
    currency: Currency
    balance_minor: int
    remainder: Decimal
    version: int
    chain: bytes
    overdraft_limit_minor: int
    # All its debits ever, and how much of them lots have paid: see `ledger.lots.book`.
    debited_minor: int = 0
    covered_minor: int = 0
    # The current lot, what is left of it, where on the line it began, and when it expires.
    lot_id: LotId | None = None
    lot_left_minor: int = 0
    lot_from_minor: int = 0
    lot_until: datetime | None = None
    # The part of the balance in frozen lots, which may not be spent.
    frozen_minor: int = 0


class Lot(NamedTuple):
    """A lot as stored. The wallet's row holds the rest of the current lot."""

    lot_id: LotId
    wallet_id: WalletId
    source: Source
    priority: int
    amount_minor: int
    remaining_minor: int
    cost_basis_minor: int | None
    expires_at: datetime | None
    frozen_at: datetime | None
    created_at: datetime

    @property
    def turn(self) -> tuple[int, datetime, bool, datetime, str]:
        """Return the sort key of the order in which lots are consumed."""
        return (
            self.priority,
            self.expires_at or _FOREVER,
            self.source != "promotional",
            self.created_at,
            self.lot_id,
        )

    def has_expired(self, now: datetime) -> bool:
        """Tell whether it has expired."""
        return self.expires_at is not None and self.expires_at <= now

    def is_spendable(self, now: datetime) -> bool:
        """Tell whether a debit may consume it."""
        return self.frozen_at is None and not self.has_expired(now)


class LotMove(NamedTuple):
    """An amount that a debit takes from a lot, or that a credit gives back to it."""

    lot_id: LotId
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LotTerms:
    """The terms of the lot of a credit. Without `expires_at` it never expires.

    `cost_basis_minor` is the price that was paid for it, or None if that is unknown.
    """

    source: Source = "manual"
    priority: int = PRIORITY_DEFAULT
    expires_at: datetime | None = None
    cost_basis_minor: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """A request to write one entry to a wallet.

    Usage gives `exact_cost` (minor units with decimals). The ledger computes its `amount_minor` and
    carries the remainder. All other kinds give `amount_minor` > 0.
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
    # A debit takes these from their lots, and the rest from the lots in order. A credit gives these
    # back to their lots, and the rest is a new lot with these terms.
    lot_moves: tuple[LotMove, ...] = ()
    lot_terms: LotTerms = LotTerms()
    # As usage, it is written even if it leaves a debt.
    may_owe: bool = False

    @property
    def moved_minor(self) -> int:
        """Return the part that is taken from, or given back to, lots that it names."""
        return sum(move.amount_minor for move in self.lot_moves)


class Entry(NamedTuple):
    """One immutable entry of a wallet's history, chained to the entry before it.

    A tuple, because a frozen data class of so many fields takes four times as long to make.
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
    # Where a debit begins on the line of the wallet's debits: see `ledger.lots.book`. A credit has
    # None.
    debited_before_minor: int | None = None
    chain: bytes = b""


def chain_digest(previous: bytes, entry: Entry) -> bytes:
    """Return the SHA-256 of the entry and of the digest before it, so that any edit shows.

    It covers every stored column as a JSON array, so that no content can move between columns.
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
        # Debits that are older than lots have no place, and keep their digest.
        *(() if entry.debited_before_minor is None else (entry.debited_before_minor,)),
    )
    return sha256(previous + orjson.dumps(columns)).digest()
