"""`gullak credit`, `debit` and `history`: what is written to a wallet, and what was."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from metering.ids import CustomerId
from metering.ledger.entry import Entry
from metering.ledger.history import history as read_history
from metering.ledger.manual import Entered, ManualEntry, enter
from metering.ledger.wallets import wallet_of
from worker.cli.options import (
    AsJson,
    Business,
    CurrencyCode,
    Customer,
    Limit,
    Priority,
    Wide,
    minor,
    moment,
)
from worker.cli.show import major, money, print_json, print_table
from worker.cli.target import DataDir, Target, business_of, open_target

Amount = Annotated[int, minor("--amount", "Above 0.")]
Reason = Annotated[str, typer.Option("--reason", help="Why: it stands in the history.")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", help="Idempotency key: the same command again with the same key writes nothing."
    ),
]


def credit(
    *,
    customer: Customer,
    currency: CurrencyCode,
    amount: Amount,
    reason: Reason,
    key: Key = None,
    expires_at: Annotated[
        datetime | None,
        moment("--expires-at", "Until when it may be spent. Default: for ever."),
    ] = None,
    source: Annotated[
        Literal["paid", "promotional", "manual"] | None,
        typer.Option(
            help="Where it came from. Default: manual. Of what expires together, promotional is"
            " burned first."
        ),
    ] = None,
    priority: Priority = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Add to a wallet by hand."""
    given = {
        "amount": amount,
        "currency": currency,
        "entry_type": "credit",
        "reason": reason,
        "idempotency_key": key,
        "expires_at": expires_at,
        "source": source,
        "priority": priority,
    }
    request = ManualEntry.model_validate(given)
    _enter(request, customer, business, data_dir, as_json=as_json)


def debit(
    *,
    customer: Customer,
    currency: CurrencyCode,
    amount: Amount,
    reason: Reason,
    key: Key = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Take from a wallet by hand; beyond the balance it is refused."""
    request = ManualEntry(
        amount=amount, currency=currency, entry_type="debit", reason=reason, idempotency_key=key
    )
    _enter(request, customer, business, data_dir, as_json=as_json)


def _enter(
    request: ManualEntry,
    customer: str,
    business: str | None,
    data_dir: Path | None,
    *,
    as_json: bool,
) -> None:
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id, customer_id = business_of(conn, business), CustomerId(customer)
        entered = enter(conn, business_id, customer_id, request)
        balance_minor = wallet_of(conn, business_id, customer_id, request.currency).balance_minor
    if as_json:
        balance = major(balance_minor, request.currency, target.settings.currencies)
        print_json(
            {
                "entry_id": entered.entry_id,
                "wallet_id": entered.wallet_id,
                "replayed": entered.replayed,
                "balance_minor": balance_minor,
                "balance": balance,
            }
        )
        return
    now = money(balance_minor, request.currency, target.settings.currencies)
    typer.echo(f"{_said(entered, request, target)}; the balance is {now}")


def _said(entered: Entered, request: ManualEntry, target: Target) -> str:
    if entered.replayed:
        return f"replayed: this key made {entered.entry_id} before, nothing was written"
    amount = money(request.amount, request.currency, target.settings.currencies)
    return f"{request.entry_type} of {amount} is {entered.entry_id}"


_COLUMNS: Final = (
    "version#",
    "created_at",
    "amount#",
    "balance#",
    "what~",
    "entry_id",
    "amount (minor)#",
    "exact cost (minor)#",
    "remainder (minor)#",
    "key",
)


def history(
    *,
    customer: Annotated[str, typer.Argument(help="Customer id.", metavar="CUSTOMER")],
    currency: CurrencyCode,
    limit: Limit = 20,
    before: Annotated[
        int | None, typer.Option(help="Only entries older than this version.", min=1)
    ] = None,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show the entries of a wallet, newest first; --before goes on where the last page ended."""
    with open_target(data_dir) as target, target.transaction() as conn:
        wallet = wallet_of(conn, business_of(conn, business), CustomerId(customer), currency)
        entries = read_history(conn, wallet.wallet_id, page=limit, before_version=before)
    if as_json:
        print_json([entry._asdict() for entry in entries])
    else:
        rows = [_row(entry, target) for entry in entries]
        print_table(_COLUMNS, rows, f"{wallet.wallet_id}, {currency}", wide=wide)


def _row(entry: Entry, target: Target) -> tuple[object, ...]:
    decimals = target.settings.currencies
    signed = entry.amount_minor if entry.is_credit else -entry.amount_minor
    return (
        entry.version,
        entry.created_at,
        major(signed, entry.currency, decimals) or f"{signed} minor",
        major(entry.after_minor, entry.currency, decimals) or f"{entry.after_minor} minor",
        _what(entry),
        entry.entry_id,
        signed,
        entry.exact_cost,
        entry.remainder_after,
        entry.idempotency_key,
    )


def _what(entry: Entry) -> str:
    if entry.event_count:
        return f"{entry.kind}, {entry.event_count} events"
    return f"{entry.kind}: {entry.reason}" if entry.reason else entry.kind
