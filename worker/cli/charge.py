"""`gullak charge`: charges, and those that wait for a person."""

from typing import Annotated

from typer import Argument, Option

from metering.ids import BusinessId, ChargeId
from metering.payment.charges.manual import fail_charge, look_up_charge
from metering.payment.charges.store import Charge, page_of_charges
from worker import charging
from worker.cli.command import Group, Tenant
from worker.cli.options import Limit
from worker.cli.page import Sentence, table
from worker.cli.target import Target

app = Group()

ChargeArgument = Annotated[ChargeId, Argument(help="Charge id.", metavar="CHARGE")]


@app.add(
    "list",
    table(
        """
            charge_id, amount# = $amount_minor, status, payment_id, failure~, created_at,
            for = order
        """,
        status=lambda c: f"{c.status}, parked" if c.is_parked else c.status,
        order=lambda charge: charge.checkout_id or charge.purchase_id,
    ),
)
def list_all(
    tenant: Tenant,
    parked: Annotated[bool, Option("--parked", help="Only those that wait for a person.")] = False,
    limit: Limit = 50,
) -> list[Charge]:
    """List charges, newest first."""
    return tenant.run(page_of_charges, page=limit, is_parked=parked)


@app.add("look-up")
def look_up(target: Target, business: BusinessId, charge: ChargeArgument) -> Sentence:
    """Ask the provider for the state of a charge; if it has ended, record that."""
    policy = charging.charge_policy_of(target.settings)
    answer = look_up_charge(target.transaction, charging.open_gateway, business, charge, policy)
    state = "the provider knows of no such charge" if answer is None else answer.status
    return Sentence(answer, f"{charge}: {state}")


@app.add("fail")
def fail(
    tenant: Tenant,
    charge: ChargeArgument,
    reason: Annotated[str, Option(help="What you found out.")],
) -> Sentence:
    """Let a parked charge fail: you asked the provider, and nothing was charged."""
    policy = charging.charge_policy_of(tenant.target.settings)
    failed = tenant.run(fail_charge, charge, reason, policy)
    return Sentence(failed, f"{charge} has failed")
