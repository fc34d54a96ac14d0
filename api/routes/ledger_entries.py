"""Ledger entries: credit or debit by hand, and the full history of a customer's wallets."""

from datetime import datetime
from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import Connection

from api.auth import Reader, Writer
from api.paging import Page, Paged
from api.routes.wallets import CustomerPath, CustomerWallet, wallet_of_view
from api.scope import Scoped
from metering.clock import Moment
from metering.ids import BatchId, BusinessId, Currency, CustomerId, EntryId
from metering.ledger.accounts import wallets_of
from metering.ledger.entry import Entry, EventType, Kind
from metering.ledger.listing import EntryFilter, list_entries
from metering.ledger.manual import Entered, ManualEntry, enter
from metering.money import plain

router: Final = APIRouter(
    prefix="/customers/{customer_id}/wallets/ledger-entries", tags=["ledger entries"]
)


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
    if entered.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return wallet


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
