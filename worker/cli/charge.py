"""`gullak charge`: what was asked of payment providers, and what nobody knows the end of."""

from typing import Annotated

import typer

from metering.ids import ChargeId
from metering.payment.charges.manual import fail_charge, look_up_charge
from metering.payment.charges.store import page_of_charges
from worker.charging import charge_policy_of, open_gateway
from worker.cli.options import AsJson, Business, Limit, Wide
from worker.cli.show import money, print_json, print_table
from worker.cli.target import DataDir, business_of, open_target

app = typer.Typer(help="What payment providers were asked for.", no_args_is_help=True)

ChargeArgument = Annotated[str, typer.Argument(help="Charge id.", metavar="CHARGE")]


@app.command("list")
def list_all(
    *,
    parked: Annotated[
        bool, typer.Option("--parked", help="Only those that wait for a person.")
    ] = False,
    limit: Limit = 50,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List charges, newest first."""
    with open_target(data_dir) as target, target.transaction() as conn:
        found = page_of_charges(conn, business_of(conn, business), page=limit, is_parked=parked)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            charge.charge_id,
            money(charge.amount_minor, charge.currency, target.settings.currencies),
            f"{charge.status}, parked" if charge.is_parked else charge.status,
            charge.payment_id,
            charge.failure,
            charge.created_at,
            charge.checkout_id or charge.purchase_id,
        )
        for charge in found
    ]
    columns = ("charge_id", "amount#", "status", "payment_id", "failure~", "created_at", "for")
    print_table(columns, rows, wide=wide)


@app.command("look-up")
def look_up(
    *,
    charge: ChargeArgument,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Ask the provider what has become of a charge; what has ended is recorded."""
    with open_target(data_dir) as target:
        with target.transaction() as conn:
            business_id = business_of(conn, business)
        answer = look_up_charge(
            target.transaction,
            open_gateway,
            business_id,
            ChargeId(charge),
            charge_policy_of(target.settings),
        )
    if as_json:
        print_json(answer)
        return
    said = "the provider knows of no such charge" if answer is None else answer.status
    typer.echo(f"{charge}: {said}")


@app.command("fail")
def fail(
    *,
    charge: ChargeArgument,
    reason: Annotated[str, typer.Option(help="What was found out.")],
    business: Business = None,
    data_dir: DataDir = None,
) -> None:
    """Let a parked charge fail: the provider was asked, and nothing was charged."""
    with open_target(data_dir) as target, target.transaction() as conn:
        policy = charge_policy_of(target.settings)
        fail_charge(conn, business_of(conn, business), ChargeId(charge), reason, policy)
    typer.echo(f"{charge} has failed")
