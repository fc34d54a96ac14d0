"""`gullak wallet`: what may be done with a wallet beside crediting and debiting it."""

from typing import Annotated

import typer

from metering.ids import Currency, CustomerId
from metering.ledger.overdraft import Overdraft, set_overdraft
from metering.ledger.wallets import wallets_of
from worker.cli.customer import print_wallets, shown_wallet
from worker.cli.options import AsJson, Business, CurrencyCode, Customer, minor
from worker.cli.show import print_json
from worker.cli.target import DataDir, business_of, open_target

app = typer.Typer(help="How far a wallet may be overdrawn.", no_args_is_help=True)


@app.command("overdraft")
def overdraft(
    *,
    customer: Customer,
    currency: CurrencyCode,
    limit: Annotated[int, minor("--limit", "How far below zero; 0: not at all.")],
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Say how far below zero a debit that is not usage may go."""
    new = Overdraft(limit=limit)
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id, customer_id = business_of(conn, business), CustomerId(customer)
        set_overdraft(conn, business_id, customer_id, currency, new)
        view = wallets_of(conn, business_id, customer_id)[Currency(currency)]
    if as_json:
        print_json(shown_wallet(view, target))
    else:
        print_wallets([view], target)
