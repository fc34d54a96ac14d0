"""`gullak business`: the tenants."""

from typing import Annotated

import typer
from sqlalchemy import Connection
from typer import Argument, Option

from metering.ledger.businesses import (
    Business,
    BusinessChange,
    BusinessName,
    ReversalPolicy,
    change_business,
    create_business,
    list_businesses,
)
from metering.rate_card.card import OnUnmetered
from worker.cli.command import Group, Options, Tenant
from worker.cli.page import Page, field, table

app = Group()


@app.add("create", field("business_id"))
def create(conn: Connection, name: Annotated[str, Argument(help="Its name.")]) -> dict[str, str]:
    """Make a business and print its id."""
    return {"business_id": create_business(conn, name), "name": name.strip()}


@app.add("list", table("business_id, name~, created_at"))
def list_all(conn: Connection) -> list[BusinessName]:
    """List all businesses, oldest first."""
    return list_businesses(conn)


_POLICIES = Options(
    reversal_policy=Annotated[
        ReversalPolicy | None,
        Argument(
            metavar="POLICY",
            help="For credit that is called back but spent. debt: the customer owes it;"
            " stop_at_zero: the shortfall is reported, and nobody owes it. Default: show it.",
        ),
    ],
    on_unmetered=Annotated[
        OnUnmetered | None,
        Option(
            help="For usage that no meter or price covers. refuse: it waits among the refused"
            " events; keep_free: it is kept, and charged to nobody."
        ),
    ],
)


def _print_policies(found: Business) -> None:
    typer.echo(f"reversal policy: {found.reversal_policy}")
    typer.echo(f"usage that nothing prices: {found.on_unmetered}")


@app.add("policy", Page(lambda found, _view: _print_policies(found)))
def policy(tenant: Tenant, change: Annotated[BusinessChange, _POLICIES]) -> Business:
    """Show or set the policies of a business."""
    return tenant.run(change_business, change)
