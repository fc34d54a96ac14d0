"""Ledger entries: credit or debit by hand, the full history, what lots paid, and refunds."""

from datetime import datetime
from functools import partial
from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import Connection

from api.auth import Reader, Writer
from api.context import Scoped
from api.paging import Page, Paged
from api.routes.wallets import CustomerPath, CustomerWallet, wallet_of_view
from metering.clock import Moment
from metering.ids import BatchId, BusinessId, Currency, CustomerId, EntryId, LotId, MeterId
from metering.ledger.entry import Entry, EventType, Kind, Source
from metering.ledger.history import get_entry
from metering.ledger.listing import EntryFilter, list_entries
from metering.ledger.lots.listing import Allocations, allocations_of
from metering.ledger.manual import Entered, ManualEntry, enter
from metering.ledger.wallets import wallets_of
from metering.money import ZERO, plain
from metering.purchase.refund import DebitRefund, refund_debit
from metering.usage.entry_usage import ExplainedEvent, explain_events
from metering.usage.find import find_event

router: Final = APIRouter(
    prefix="/customers/{customer_id}/wallets/ledger-entries", tags=["ledger entries"]
)

EntryPath = Annotated[EntryId, Path(min_length=1, max_length=64)]


class LedgerEntry(BaseModel):
    """One immutable line of a wallet's history. Amounts in minor units, never negative.

    `amount` is 0 where usage was worth less than a minor unit: `exact_cost` and `remainder` tell.
    """

    id: EntryId
    business_id: BusinessId
    customer_id: CustomerId
    currency: Currency
    amount: int
    is_credit: bool
    event_type: EventType
    kind: Kind
    before_balance: int
    after_balance: int
    created_at: datetime
    reason: str | None
    reference_object_id: str | None
    idempotency_key: str | None
    # 1, 2, 3 … per wallet, without gaps.
    version: int
    batch_id: BatchId | None
    event_count: int
    exact_cost: str
    remainder: str
    metadata: dict[str, bool | int | float | str]


class AllocationOut(BaseModel):
    """So much, in minor units, a debit burned from a lot, or a credit gave to it."""

    lot_id: LotId
    source: Source
    amount: int


class AllocationsOut(BaseModel):
    """The lots of an entry in the order in which they were used.

    `unpaid`: the part of a debit that no lot has paid yet. It is debt; the next credit pays it.
    """

    items: list[AllocationOut]
    unpaid: int


class UsageLine(BaseModel):
    """What one meter adds to an event. Minor units, exact decimals."""

    meter_id: MeterId
    meter_name: str
    unit: str
    quantity: str
    unit_price: str
    cost: str


class EntryUsage(BaseModel):
    """An event of a debit: its exact cost in minor units, and the lines that make it.

    `adds_up` false: a meter or a price has changed since. `cost` is what was charged; the lines are
    by the meters and prices of today.
    """

    event_id: str
    event_name: str
    timestamp: datetime
    cost: str
    lines: list[UsageLine]
    adds_up: bool


def _usage(explained: ExplainedEvent) -> EntryUsage:
    event = explained.event
    return EntryUsage(
        event_id=event.event_id,
        event_name=event.event_name,
        timestamp=event.event_at,
        cost=plain(event.cost_minor or ZERO),
        lines=[
            UsageLine(
                meter_id=line.meter_id,
                meter_name=line.meter_name,
                unit=line.unit,
                quantity=plain(line.quantity),
                unit_price=plain(line.unit_price),
                cost=plain(line.cost),
            )
            for line in explained.lines
        ],
        adds_up=explained.adds_up,
    )


def _out(entry: Entry) -> LedgerEntry:
    return LedgerEntry(
        id=entry.entry_id,
        business_id=entry.business_id,
        customer_id=entry.customer_id,
        currency=entry.currency,
        amount=entry.amount_minor,
        is_credit=entry.is_credit,
        event_type=entry.event_type,
        kind=entry.kind,
        before_balance=entry.before_minor,
        after_balance=entry.after_minor,
        created_at=entry.created_at,
        reason=entry.reason,
        reference_object_id=entry.reference,
        idempotency_key=entry.idempotency_key,
        version=entry.version,
        batch_id=entry.batch_id,
        event_count=entry.event_count,
        exact_cost=plain(entry.exact_cost),
        remainder=plain(entry.remainder_after),
        metadata=orjson.loads(entry.metadata_json),
    )


@router.post("")
def make_entry(
    *,
    caller: Writer,
    scope: Scoped,
    customer_id: CustomerPath,
    new: ManualEntry,
    request: Request,
    response: Response,
) -> CustomerWallet:
    """Credit or debit a wallet, once per idempotency key; return the wallet after it.

    The same key with the same content answers with the wallet as it is now, and the header
    `Idempotent-Replayed: true`; with other content it is a conflict.
    """
    # Without a key nobody can tell a second try from a second entry.
    request.state.repeatable = new.idempotency_key is not None

    def work(conn: Connection) -> tuple[Entered, CustomerWallet]:
        entered = enter(conn, caller.business_id, customer_id, new)
        views = wallets_of(conn, caller.business_id, customer_id)
        return entered, wallet_of_view(views[Currency(new.currency)])

    entered, wallet = scope.run(caller.business_id, work)
    _tell_replay(entered, response)
    return wallet


def _tell_replay(entered: Entered, response: Response) -> None:
    if entered.replayed:
        response.headers["Idempotent-Replayed"] = "true"


@router.get("")
def entries_page(
    *,
    caller: Reader,
    scope: Scoped,
    customer_id: CustomerPath,
    paged: Paged,
    currency: Annotated[str | None, Query(max_length=10)] = None,
    event_type: EventType | None = None,
    created_at_gte: Moment | None = None,
    created_at_lte: Moment | None = None,
) -> Page[LedgerEntry]:
    """List the entries of all wallets of a customer, or of one currency, newest first."""
    wanted = EntryFilter(
        currency=None if currency is None else Currency(currency),
        event_type=event_type,
        created_at_gte=created_at_gte,
        created_at_lte=created_at_lte,
    )
    found = scope.run(
        caller.business_id,
        lambda conn: list_entries(
            conn,
            caller.business_id,
            customer_id,
            wanted,
            page=paged.size,
            offset=paged.offset,
            after=paged.after_as(EntryId),
        ),
    )
    return Page(items=[_out(entry) for entry in found])


@router.get("/{entry_id}/allocations")
def show_allocations(
    caller: Reader, scope: Scoped, customer_id: CustomerPath, entry_id: EntryPath
) -> AllocationsOut:
    """Return which lots paid for a debit, or which ones a credit filled."""

    def work(conn: Connection) -> Allocations:
        entry = get_entry(conn, caller.business_id, entry_id, customer_id=customer_id)
        return allocations_of(conn, entry)

    found = scope.run(caller.business_id, work)
    items = [
        AllocationOut(lot_id=item.lot_id, source=item.source, amount=item.amount_minor)
        for item in found.items
    ]
    return AllocationsOut(items=items, unpaid=found.unpaid_minor)


@router.get("/{entry_id}/usage")
def show_usage(
    caller: Reader, scope: Scoped, customer_id: CustomerPath, entry_id: EntryPath, paged: Paged
) -> Page[EntryUsage]:
    """List the events that a debit is made of, newest first, with quantities and prices."""
    after = paged.after
    business_id = caller.business_id
    transaction = partial(scope.sessions.tenant, business_id)
    last = None if after is None else find_event(transaction, scope.buffer, business_id, after)

    def work(conn: Connection) -> list[ExplainedEvent]:
        entry = get_entry(conn, business_id, entry_id, customer_id=customer_id)
        return explain_events(conn, entry, page=paged.size, offset=paged.offset, last=last)

    return Page(items=[_usage(found) for found in scope.run(business_id, work)])


@router.post("/{entry_id}/refunds")
def refund_entry(
    *,
    caller: Writer,
    scope: Scoped,
    customer_id: CustomerPath,
    entry_id: EntryPath,
    new: DebitRefund,
    request: Request,
    response: Response,
) -> CustomerWallet:
    """Give a debit back, in part or whole, to the lots that it burned; return the wallet after it.

    A key is repeated as for entries. Without an amount all that is left of the debit is given back.
    """
    request.state.repeatable = new.idempotency_key is not None

    def work(conn: Connection) -> tuple[Entered, CustomerWallet]:
        entered = refund_debit(conn, caller.business_id, customer_id, entry_id, new)
        views = wallets_of(conn, caller.business_id, customer_id).values()
        (view,) = [view for view in views if view.wallet.wallet_id == entered.wallet_id]
        return entered, wallet_of_view(view)

    entered, wallet = scope.run(caller.business_id, work)
    _tell_replay(entered, response)
    return wallet
