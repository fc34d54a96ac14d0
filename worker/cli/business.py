"""`gullak business`: the tenants."""

from typing import Annotated

import typer

from metering.ledger import statements
from metering.ledger.businesses import BusinessChange, ReversalPolicy, change_business
from metering.ledger.wallets import create_business
from metering.rate_card.card import OnUnmetered
from worker.cli.options import AsJson, Business
from worker.cli.show import print_json, print_table
from worker.cli.target import DataDir, business_of, open_target

app = typer.Typer(help="The businesses that sell.", no_args_is_help=True)


@app.command("create")
def create(
    *,
    name: Annotated[str, typer.Argument(help="Its name.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make a business and print its id."""
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id = create_business(conn, name)
    if as_json:
        print_json({"business_id": business_id, "name": name.strip()})
    else:
        typer.echo(business_id)


@app.command("list")
def list_all(*, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List all businesses, oldest first."""
    with open_target(data_dir) as target, target.transaction() as conn:
        found = [dict(row) for row in conn.execute(statements.BUSINESSES).mappings()]
    if as_json:
        print_json(found)
    else:
        print_table(("business_id", "name~", "created_at"), [[*row.values()] for row in found])


@app.command("policy")
def policy(
    *,
    reversal: Annotated[
        ReversalPolicy | None,
        typer.Argument(
            metavar="POLICY",
            help="What becomes of credit that is called back but spent. debt: it is owed;"
            " stop_at_zero: the shortfall is told, and nobody owes it. Default: show it.",
        ),
    ] = None,
    on_unmetered: Annotated[
        OnUnmetered | None,
        typer.Option(
            help="What becomes of usage that no meter or price covers. refuse: it waits as refused"
            " events; keep_free: it is kept, and charged to nobody."
        ),
    ] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show, or set, what the business has decided."""
    with open_target(data_dir) as target, target.transaction() as conn:
        change = BusinessChange(reversal_policy=reversal, on_unmetered=on_unmetered)
        found = change_business(conn, business_of(conn, business), change)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"reversal policy: {found.reversal_policy}")
        typer.echo(f"usage that nothing prices: {found.on_unmetered}")
