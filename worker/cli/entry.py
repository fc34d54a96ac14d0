"""`gullak credit`, `debit` and `history`: entries of a wallet."""

from datetime import datetime
from typing import Annotated, Final, Literal

from typer import Option

from metering.ids import CustomerId
from metering.ledger.entry import Entry
from metering.ledger.history import history as read_history
from metering.ledger.manual import ManualEntry, enter
from metering.ledger.wallets import wallet_of
from worker.cli.command import Options, Tenant, command
from worker.cli.options import (
    CurrencyCode,
    Customer,
    CustomerArgument,
    Key,
    Limit,
    Priority,
    Reason,
    minor,
    moment,
)
from worker.cli.page import Page, Sentence, View, columns
from worker.cli.show import major, money

_DEBIT: Final = Options(
    currency=CurrencyCode,
    amount=Annotated[int, minor("--amount", "Above 0.")],
    reason=Reason,
    idempotency_key=Key,
    entry_type="debit",
)
_CREDIT: Final = Options(
    **_DEBIT | {"entry_type": "credit"},
    expires_at=Annotated[
        datetime | None, moment("--expires-at", "When it expires. Default: never.")
    ],
    source=Annotated[
        Literal["paid", "promotional", "manual"] | None,
        Option(
            help="Where it came from. Default: manual. Of credit that expires together, promotional"
            " is consumed first."
        ),
    ],
    priority=Priority,
)


@command()
def credit(tenant: Tenant, customer: Customer, new: Annotated[ManualEntry, _CREDIT]) -> Sentence:
    """Credit a wallet by hand."""
    return _enter(tenant, customer, new)


@command()
def debit(tenant: Tenant, customer: Customer, new: Annotated[ManualEntry, _DEBIT]) -> Sentence:
    """Debit a wallet by hand; an amount above the balance is refused."""
    return _enter(tenant, customer, new)


def _enter(tenant: Tenant, customer: CustomerId, new: ManualEntry) -> Sentence:
    entered = tenant.run(enter, customer, new)
    balance_minor = tenant.run(wallet_of, customer, new.currency).balance_minor
    decimals = tenant.target.settings.currencies
    if entered.replayed:
        done = f"replayed: this key made {entered.entry_id} before, nothing was written"
    else:
        amount = money(new.amount, new.currency, decimals)
        done = f"{new.entry_type} of {amount} is {entered.entry_id}"
    record = {
        "entry_id": entered.entry_id,
        "wallet_id": entered.wallet_id,
        "replayed": entered.replayed,
        "balance_minor": balance_minor,
        "balance": major(balance_minor, new.currency, decimals),
    }
    now = money(balance_minor, new.currency, decimals)
    return Sentence(record, f"{done}; the balance is {now}")


def _what(entry: Entry) -> str:
    if entry.event_count:
        return f"{entry.kind}, {entry.event_count} events"
    return f"{entry.kind}: {entry.reason}" if entry.reason else entry.kind


def _signed(entry: Entry) -> int:
    return entry.amount_minor if entry.is_credit else -entry.amount_minor


def _print_history(found: Sentence, view: View) -> None:
    def in_major(entry: Entry, amount_minor: int) -> str:
        whole = major(amount_minor, entry.currency, view.currencies)
        return whole or f"{amount_minor} minor"

    shown = columns(
        """
            version#, created_at, amount#, balance#, what~, entry_id,
            amount (minor)# = amount_minor, exact cost (minor)# = exact_cost,
            remainder (minor)# = remainder_after, key = idempotency_key
        """,
        amount=lambda entry: in_major(entry, _signed(entry)),
        balance=lambda entry: in_major(entry, entry.after_minor),
        what=_what,
        amount_minor=_signed,
    )
    view.table(shown, found.record, found.text, wide=view.wide)


@command(Page(_print_history, has_wide=True))
def history(
    tenant: Tenant,
    customer: CustomerArgument,
    currency: CurrencyCode,
    limit: Limit = 20,
    before: Annotated[
        int | None, Option(help="Only entries older than this version: the next page.", min=1)
    ] = None,
) -> Sentence:
    """Show the entries of a wallet, newest first."""
    wallet = tenant.run(wallet_of, customer, currency)
    entries = read_history(tenant.conn, wallet.wallet_id, page=limit, before_version=before)
    return Sentence(entries, f"{wallet.wallet_id}, {currency}")
