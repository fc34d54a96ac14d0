"""Ledger entries: manual credits and debits, the history, the lots that paid, and refunds."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final

import orjson
from fastapi import APIRouter
from pydantic import AliasPath, BeforeValidator, Field
from sqlalchemy import Connection

from api.idempotency import Idempotent
from api.paging import Page, Paged
from api.parameters import CurrencyQuery, CustomerPath, EntryPath
from api.tenant import Reader, Writer
from api.views import CustomerWallet, Exact, Metadata, View
from metering.clock import Moment
from metering.ids import BatchId, BusinessId, Currency, CustomerId, EntryId, LotId, MeterId
from metering.ledger.entry import Entry, EventType, Kind, Source
from metering.ledger.history import get_entry
from metering.ledger.listing import EntryFilter, list_entries
from metering.ledger.lots.listing import Allocations, allocations_of
from metering.ledger.manual import Entered, ManualEntry, enter
from metering.ledger.reversals import reversals_of
from metering.ledger.wallets import WalletView, wallets_of
from metering.money import ZERO, plain
from metering.purchase.refund import DebitRefund, refund_debit
from metering.usage.entry_usage import ExplainedEvent, explain_events
from metering.usage.find import find_event

router: Final = APIRouter(
    prefix="/customers/{customer_id}/wallets/ledger-entries", tags=["ledger entries"]
)


class ReversalOut(View):
    """An entry that gives a debit back, or calls the credit of a purchase back; minor units.

    A credit among those of a purchase gives back what was called back: a dispute was won.
    """

    id: EntryId = Field(validation_alias="entry_id")
    kind: Kind
    is_credit: bool
    amount: int = Field(validation_alias="amount_minor")
    created_at: datetime


class LedgerEntry(View):
    """One immutable line of a wallet's history. Amounts in minor units, never negative.

    `amount` is 0 if usage cost less than a minor unit. A debit for usage carries the part below one
    minor unit: `remainder_before` + `exact_cost` = `amount` + `remainder`. `remainder` is what the
    wallet carries after the entry. Other entries leave it as it was.
    `reversed_by`: the later entries that give it or call it back, in part or whole.
    """

    id: EntryId = Field(validation_alias="entry_id")
    business_id: BusinessId
    customer_id: CustomerId
    currency: Currency
    amount: int = Field(validation_alias="amount_minor")
    is_credit: bool
    event_type: EventType
    kind: Kind
    before_balance: int = Field(validation_alias="before_minor")
    after_balance: int = Field(validation_alias="after_minor")
    created_at: datetime
    reason: str | None
    reference_object_id: str | None = Field(validation_alias="reference")
    idempotency_key: str | None
    # 1, 2, 3 … per wallet, without gaps.
    version: int
    batch_id: BatchId | None
    event_count: int
    exact_cost: Exact
    remainder_before: Exact
    remainder: Exact = Field(validation_alias="remainder_after")
    metadata: Annotated[Metadata, BeforeValidator(orjson.loads)] = Field(
        validation_alias="metadata_json"
    )
    reversed_by: list[ReversalOut] = Field(default_factory=list)


class AllocationOut(View):
    """The part of a debit that a lot paid, or of a credit that went into a lot; minor units."""

    lot_id: LotId
    source: Source
    amount: int = Field(validation_alias="amount_minor")


class AllocationsOut(View):
    """The lots of an entry in the order in which they were used.

    `unpaid`: the part of a debit that no lot has paid yet. It is debt; the next credit pays it.
    """

    items: list[AllocationOut]
    unpaid: int = Field(validation_alias="unpaid_minor")


class UsageLine(View):
    """What one meter adds to the cost of an event. Minor units, exact decimals."""

    meter_id: MeterId
    meter_name: str
    unit: str
    quantity: Exact
    unit_price: Exact
    cost: Exact


class EntryUsage(View):
    """An event of a debit: its exact cost in minor units, and the lines that add up to it.

    `cost` is what was charged. The lines show the meters and prices of the time of the debit. If
    `adds_up` is false, these are not fully known, the lines make another sum, and `note` says so.
    """

    event_id: str = Field(validation_alias=AliasPath("event", "event_id"))
    event_name: str = Field(validation_alias=AliasPath("event", "event_name"))
    timestamp: datetime = Field(validation_alias=AliasPath("event", "event_at"))
    cost: Annotated[str, BeforeValidator(lambda minor: plain(minor or ZERO))] = Field(
        validation_alias=AliasPath("event", "cost_minor")
    )
    lines: list[UsageLine]
    adds_up: bool
    note: str | None


@router.post("", response_model=CustomerWallet)
def make_entry(
    tenant: Writer, customer_id: CustomerPath, new: ManualEntry, idempotency: Idempotent
) -> WalletView:
    """Credit or debit a wallet, once per idempotency key; return the wallet afterwards.

    The same key with the same content returns the wallet as it is now, with the header
    `Idempotent-Replayed: true`; with other content it is a conflict.
    """
    idempotency.by(new.idempotency_key)

    def work(conn: Connection, business_id: BusinessId) -> tuple[Entered, WalletView]:
        entered = enter(conn, business_id, customer_id, new)
        return entered, _wallet_of(conn, business_id, customer_id, entered)

    entered, wallet = tenant.run(work)
    idempotency.note(replayed=entered.replayed)
    return wallet


def _wallet_of(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId, entered: Entered
) -> WalletView:
    views = wallets_of(conn, business_id, customer_id).values()
    (view,) = [view for view in views if view.wallet.wallet_id == entered.wallet_id]
    return view


@router.get("", response_model=Page[LedgerEntry])
def entries_page(
    *,
    tenant: Reader,
    customer_id: CustomerPath,
    paged: Paged,
    currency: CurrencyQuery = None,
    event_type: EventType | None = None,
    created_at_gte: Moment | None = None,
    created_at_lte: Moment | None = None,
) -> Page[LedgerEntry]:
    """List the entries of all wallets of a customer, or of one currency, newest first."""
    wanted = EntryFilter(
        currency=currency,
        event_type=event_type,
        created_at_gte=created_at_gte,
        created_at_lte=created_at_lte,
    )

    def work(conn: Connection, business_id: BusinessId) -> list[LedgerEntry]:
        rows = paged.rows(EntryId)
        return _shown(conn, list_entries(conn, business_id, customer_id, wanted, **rows))

    return Page(items=tenant.run(work))


def _shown(conn: Connection, entries: Sequence[Entry]) -> list[LedgerEntry]:
    reversals = reversals_of(conn, entries)
    shown = [LedgerEntry.model_validate(entry) for entry in entries]
    for entry in shown:
        entry.reversed_by = [ReversalOut.model_validate(r) for r in reversals.get(entry.id, ())]
    return shown


@router.get("/{entry_id}/allocations", response_model=AllocationsOut)
def show_allocations(tenant: Reader, customer_id: CustomerPath, entry_id: EntryPath) -> Allocations:
    """Return the lots that paid a debit, or that a credit went into."""

    def work(conn: Connection, business_id: BusinessId) -> Allocations:
        return allocations_of(conn, get_entry(conn, business_id, entry_id, customer_id=customer_id))

    return tenant.run(work)


@router.get("/{entry_id}/usage", response_model=Page[EntryUsage])
def show_usage(
    tenant: Reader, customer_id: CustomerPath, entry_id: EntryPath, paged: Paged
) -> Page[ExplainedEvent]:
    """List the events of a debit, newest first, with quantities and prices."""
    buffer = tenant.context.buffer
    last = None
    if paged.after is not None:
        last = find_event(tenant.transaction, buffer, tenant.business_id, paged.after)

    def work(conn: Connection, business_id: BusinessId) -> list[ExplainedEvent]:
        entry = get_entry(conn, business_id, entry_id, customer_id=customer_id)
        return explain_events(conn, entry, page=paged.size, offset=paged.offset, last=last)

    return Page(items=tenant.run(work))


@router.post("/{entry_id}/refunds", response_model=CustomerWallet)
def refund_entry(
    *,
    tenant: Writer,
    customer_id: CustomerPath,
    entry_id: EntryPath,
    new: DebitRefund,
    idempotency: Idempotent,
) -> WalletView:
    """Give a debit back, in part or whole, to the lots that paid it; return the wallet afterwards.

    Without an amount, all that is left of the debit is given back. Keys work as for entries.
    """
    idempotency.by(new.idempotency_key)

    def work(conn: Connection, business_id: BusinessId) -> tuple[Entered, WalletView]:
        entered = refund_debit(conn, business_id, customer_id, entry_id, new)
        return entered, _wallet_of(conn, business_id, customer_id, entered)

    entered, wallet = tenant.run(work)
    idempotency.note(replayed=entered.replayed)
    return wallet
