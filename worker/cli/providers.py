"""`gullak providers`: accounts at payment providers, and what their webhooks have said."""

import sys
from typing import Annotated, Final, get_args

import typer
from pydantic import SecretStr

from metering.ids import AccountId, BusinessId, ProviderEventNumber
from metering.money import INT64_MAX
from metering.payment.inbox import (
    REPLAY_MAX,
    EventFilter,
    EventStatus,
    ProviderEvent,
    Replay,
    page_of_events,
)
from metering.payment.inbox import replay as replay_events
from metering.payment.provider_account import (
    Account,
    AccountProvider,
    NewAccount,
    connect_account,
    disable_account,
    page_of_accounts,
)
from metering.purchase import statements
from worker.cli.options import AsJson, Business, Limit, Wide
from worker.cli.show import print_json, print_table
from worker.cli.target import DataDir, Target, business_of, open_target

app = typer.Typer(help="Payment providers and their webhooks.", no_args_is_help=True)

SecretFile = Annotated[
    typer.FileText | None,
    typer.Option(
        help="File with the secret that signs webhooks; `-`: standard input."
        " Left out, a terminal asks for it, unseen.",
        metavar="FILE",
    ),
]
KeyFile = Annotated[
    typer.FileText | None,
    typer.Option(
        help="File with the key of the provider's API; `-`: its next line.", metavar="FILE"
    ),
]
Payment = Annotated[
    str | None, typer.Option(help="Only of this payment, by the provider's id.", metavar="ID")
]

_ACCOUNT: Final = (
    "account_id",
    "provider",
    "name~",
    "has_webhook_secret",
    "has_api_key",
    "disabled_at",
    "base_url",
    "product_id",
    "created_at",
)
_EVENT: Final = (
    "event_number#",
    "type",
    "status",
    "reason~",
    "payment_id",
    "received_at",
    "provider",
    "attempts#",
    "provider_event_id",
)


@app.command("connect")
def connect(
    *,
    provider: Annotated[
        AccountProvider, typer.Argument(help=" or ".join(get_args(AccountProvider)))
    ],
    name: Annotated[str, typer.Option(help="What the account is called here.")],
    webhook_secret_file: SecretFile = None,
    api_key_file: KeyFile = None,
    base_url: Annotated[
        str | None, typer.Option(help="Where its API is, if not where the vendor has it.")
    ] = None,
    product: Annotated[
        str | None, typer.Option(help="What a hosted checkout sells (Dodo).", metavar="ID")
    ] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Connect an account; print its id and the path that its webhooks are sent to."""
    new = NewAccount(
        provider=provider,
        name=name,
        webhook_secret=_secret(webhook_secret_file, "Webhook secret"),
        api_key=_secret(api_key_file, "API key"),
        base_url=base_url,
        product_id=product,
    )
    with open_target(data_dir) as target, target.transaction() as conn:
        account = connect_account(conn, business_of(conn, business), new)
    path = f"/providers/{account.provider}/webhooks?account={account.account_id}"
    if as_json:
        print_json({**_shown(account, _ACCOUNT), "webhook_path": path})
    else:
        typer.echo(f"{account.account_id}\n{path}")


def _secret(file: typer.FileText | None, what: str) -> SecretStr | None:
    """Return a secret from its file, else from whoever sits at the terminal: never from options.

    What is given as an option stays in the shell's history and in the list of processes.
    """
    if file is not None:
        return SecretStr(file.readline().strip())
    if not sys.stdin.isatty():
        return None
    said = typer.prompt(f"{what} (empty: none)", default="", hide_input=True, show_default=False)
    return SecretStr(said.strip()) if said.strip() else None


@app.command("list")
def list_all(
    *,
    business: Business = None,
    limit: Limit = 100,
    wide: Wide = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List the accounts of a business, newest first; never their secrets."""
    with open_target(data_dir) as target, target.transaction() as conn:
        found = page_of_accounts(conn, business_of(conn, business), page=limit)
    _print(found, _ACCOUNT, wide=wide, as_json=as_json)


@app.command("disconnect")
def disconnect(
    *,
    account: Annotated[str, typer.Argument(help="Account id.", metavar="ACCOUNT")],
    business: Business = None,
    data_dir: DataDir = None,
) -> None:
    """Take no more webhooks of an account; what it has said already stays."""
    with open_target(data_dir) as target, target.transaction() as conn:
        disable_account(conn, business_of(conn, business), AccountId(account))
    typer.echo(f"{account} is disconnected")


@app.command("events")
def events(
    *,
    status: Annotated[
        EventStatus | None, typer.Option(help=f"Only these: {', '.join(get_args(EventStatus))}.")
    ] = None,
    payment: Payment = None,
    business: Business = None,
    limit: Limit = 100,
    wide: Wide = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List what providers have said, newest first, and what became of it."""
    wanted = EventFilter(status=status, payment_id=payment)
    with open_target(data_dir) as target, target.transaction() as conn:
        found = page_of_events(conn, business_of(conn, business), wanted, page=limit)
    _print(found, _EVENT, wide=wide, as_json=as_json)
    if len(found) == limit and not as_json:
        typer.echo(f"these are the newest {limit}; --limit shows more")


@app.command("replay")
def replay(
    *,
    event: Annotated[
        int | None,
        typer.Option(
            help="Only this event, whatever became of it.",
            metavar="NUMBER",
            min=1,
            max=INT64_MAX,
        ),
    ] = None,
    payment: Payment = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Process events anew, after their cause is fixed. Default: all parked and failed ones."""
    number = None if event is None else ProviderEventNumber(event)
    with open_target(data_dir) as target:
        with target.transaction() as conn:
            business_id = business_of(conn, business)
            before = conn.execute(statements.CLOCK).scalar_one()
        total = _replayed(
            target, business_id, Replay(event_number=number, payment_id=payment, before=before)
        )
    if as_json:
        print_json({"replayed": total})
    else:
        typer.echo(f"{total} events are processed again by the next sweep of a worker")


def _replayed(target: Target, business_id: BusinessId, wanted: Replay) -> int:
    total = 0
    while True:
        with target.transaction() as conn:
            count = replay_events(conn, business_id, wanted)
        total += count
        if count < REPLAY_MAX:
            return total


def _print(
    records: list[Account] | list[ProviderEvent],
    columns: tuple[str, ...],
    *,
    wide: bool,
    as_json: bool,
) -> None:
    if as_json:
        print_json([_shown(record, columns) for record in records])
    else:
        rows = [tuple(_shown(record, columns).values()) for record in records]
        print_table(columns, rows, wide=wide)


def _shown(record: Account | ProviderEvent, columns: tuple[str, ...]) -> dict[str, object]:
    names = [column.rstrip("#~") for column in columns]
    return {name: getattr(record, name) for name in names}
