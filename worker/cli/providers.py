"""`gullak providers`: accounts at payment providers, and the events in their webhooks."""

import sys
from typing import Annotated, Final, get_args

import typer
from pydantic import SecretStr
from typer import Argument, Option

from metering.errors import NotFoundError
from metering.ids import AccountId, BusinessId, ProviderEventNumber
from metering.money import INT64_MAX
from metering.payment.inbox import EventFilter, EventStatus, page_of_events, replay_all
from metering.payment.provider_account import (
    AccountProvider,
    NewAccount,
    connect_account,
    disable_account,
    page_of_accounts,
)
from worker.cli.command import Group, Tenant
from worker.cli.options import Limit
from worker.cli.page import Sentence, field, fields, table
from worker.cli.target import Target

app = Group()

SecretFile = Annotated[
    typer.FileText | None,
    Option(
        help="File with the secret that signs webhooks; `-`: standard input."
        " Without it, a terminal asks for the secret and does not show it.",
        metavar="FILE",
    ),
]
KeyFile = Annotated[
    typer.FileText | None,
    Option(help="File with the key of the provider's API; `-`: its next line.", metavar="FILE"),
]
OfPayment = Annotated[
    str | None,
    Option("--payment", help="Only of this payment, by the provider's id.", metavar="ID"),
]

# The columns, and the fields of the JSON.
_ACCOUNT: Final = """
    account_id, provider, name~, has_webhook_secret, has_api_key, disabled_at, base_url, product_id,
    created_at
"""
_EVENT: Final = """
    event_number#, type, status, reason~, payment_id, received_at, provider, attempts#,
    provider_event_id
"""


@app.add("connect", field("account_id", "webhook_path"))
def connect(
    target: Target,
    business: BusinessId,
    provider: Annotated[AccountProvider, Argument(help=" or ".join(get_args(AccountProvider)))],
    name: Annotated[str, Option(help="The account's name here.")],
    webhook_secret_file: SecretFile = None,
    api_key_file: KeyFile = None,
    base_url: Annotated[
        str | None, Option(help="Where its API is. Default: where the vendor has it.")
    ] = None,
    product: Annotated[
        str | None, Option(help="What a hosted checkout sells (Dodo).", metavar="ID")
    ] = None,
) -> dict[str, object]:
    """Connect an account; print its id and the path for its webhooks."""
    new = NewAccount(
        provider=provider,
        name=name,
        webhook_secret=_secret(webhook_secret_file, "Webhook secret"),
        api_key=_secret(api_key_file, "API key"),
        base_url=base_url,
        product_id=product,
    )
    with target.transaction() as conn:
        account = connect_account(conn, business, new)
    path = f"/providers/{account.provider}/webhooks?account={account.account_id}"
    return {**fields(account, _ACCOUNT), "webhook_path": path}


def _secret(file: typer.FileText | None, prompt: str) -> SecretStr | None:
    """Return a secret from its file, or from the terminal; never from an option.

    An option stays in the shell's history and in the list of processes.
    """
    if file is not None:
        return SecretStr(file.readline().strip())
    if not sys.stdin.isatty():
        return None
    secret = typer.prompt(
        f"{prompt} (empty: none)", default="", hide_input=True, show_default=False
    ).strip()
    return SecretStr(secret) if secret else None


@app.add("list", table(_ACCOUNT))
def list_all(tenant: Tenant, limit: Limit = 100) -> list[dict[str, object]]:
    """List the accounts of a business, newest first; never their secrets."""
    found = tenant.run(page_of_accounts, page=limit)
    return [fields(account, _ACCOUNT) for account in found]


@app.add("disconnect")
def disconnect(
    tenant: Tenant, account: Annotated[AccountId, Argument(help="Account id.", metavar="ACCOUNT")]
) -> Sentence:
    """Accept no more webhooks of an account; its past events stay."""
    tenant.run(disable_account, account)
    return Sentence({"account_id": account}, f"{account} is disconnected")


@app.add("events", table(_EVENT, more="these are the newest {limit}; --limit shows more"))
def events(
    tenant: Tenant,
    status: Annotated[
        EventStatus | None, Option(help=f"Only these: {', '.join(get_args(EventStatus))}.")
    ] = None,
    payment: OfPayment = None,
    limit: Limit = 100,
) -> list[dict[str, object]]:
    """List the events of providers, newest first, with their outcome."""
    wanted = EventFilter(status=status, payment_id=payment)
    found = tenant.run(page_of_events, wanted, page=limit)
    return [fields(event, _EVENT) for event in found]


@app.add("replay")
def replay(
    target: Target,
    business: BusinessId,
    event: Annotated[
        int | None,
        Option(
            help="Only this event, whatever its status.", metavar="NUMBER", min=1, max=INT64_MAX
        ),
    ] = None,
    payment: OfPayment = None,
) -> Sentence:
    """Process events again, after their cause is fixed. Default: all parked and failed ones."""
    number = None if event is None else ProviderEventNumber(event)
    total = replay_all(target.transaction, business, number, payment)
    if payment is not None and not total:
        _check_payment(target, business, payment)
    text = f"{total} events are processed again by the next sweep of a worker"
    return Sentence({"replayed": total}, text)


def _check_payment(target: Target, business: BusinessId, payment_id: str) -> None:
    """Raise NotFoundError if no provider ever told of the payment."""
    with target.transaction() as conn:
        if not page_of_events(conn, business, EventFilter(payment_id=payment_id), page=1):
            raise NotFoundError("provider event of payment", payment_id)
