"""The lots of a customer's wallets, and the lots that an entry consumed or filled."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection

from metering.db import rows
from metering.ids import BusinessId, Currency, CustomerId, EntryId, LotId, WalletId
from metering.ledger.entry import Entry, Source
from metering.ledger.lots import statements
from metering.ledger.wallets import wallet_of, wallets_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LotView:
    """A lot as it was when it was read.

    `entry_id` is the credit that made it, or None for a balance that is older than lots.
    """

    lot_id: LotId
    wallet_id: WalletId
    business_id: BusinessId
    customer_id: CustomerId
    currency: Currency
    entry_id: EntryId | None
    source: Source
    priority: int
    amount_minor: int
    left_minor: int
    cost_basis_minor: int | None
    expires_at: datetime | None
    frozen_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LotFilter:
    """A filter; a currency of None matches all."""

    currency: Currency | None = None
    only_left: bool = False


class Allocation(NamedTuple):
    """The part of an entry that consumed a lot, or went into it."""

    lot_id: LotId
    source: Source
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Allocations:
    """The lots of an entry, and the part of a debit that is still debt.

    They sum to the entry's amount, except for debits that are older than lots.
    """

    items: list[Allocation]
    unpaid_minor: int


def list_lots(
    conn: Connection,
    business_id: BusinessId,
    customer_id: CustomerId,
    wanted: LotFilter,
    *,
    page: int,
    offset: int = 0,
    after: LotId | None = None,
) -> list[LotView]:
    """Return up to `page` lots, newest first, past `offset` of them or older than `after`.

    Raises: NotFoundError if the business has no such customer. UnsupportedCurrencyError if the
    customer has no wallet in the currency.
    """
    if wanted.currency is None:
        wallets_of(conn, business_id, customer_id)
    else:
        wallet_of(conn, business_id, customer_id, wanted.currency)
    values = {"business_id": business_id, "page": page, "offset": offset, "after": after}
    chosen = {"customer_id": customer_id, **asdict(wanted)}
    return rows(LotView, conn.execute(statements.LOT_PAGE, {**values, **chosen}))


def allocations_of(conn: Connection, entry: Entry) -> Allocations:
    """Return the lots that an entry consumed, filled or made, in that order."""
    values = {"wallet_id": entry.wallet_id, "entry_id": entry.entry_id}
    items = rows(Allocation, conn.execute(statements.ALLOCATIONS, values))
    if entry.debited_before_minor is None:
        return Allocations(items, 0)
    return Allocations(items, entry.amount_minor - sum(item.amount_minor for item in items))
