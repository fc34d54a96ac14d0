"""`gullak rule`: when a webhook reports a low balance."""

from typing import Annotated

from typer import Argument, Option

from metering.ids import CustomerId, RuleId
from metering.low_credit.rules import Rule, delete_rule, list_rules, set_rule
from worker.cli.command import Group, Tenant
from worker.cli.options import CurrencyCode, minor
from worker.cli.page import Sentence, field, table

app = Group()


@app.add("set", field("rule_id"))
def set_one(
    tenant: Tenant,
    currency: CurrencyCode,
    threshold: Annotated[int, minor("--threshold", "Alert at or below this balance.")],
    recover_at: Annotated[
        int | None,
        minor("--recover-at", "Armed again from this balance on. Default: threshold + 1."),
    ] = None,
    customer: Annotated[
        CustomerId | None, Option(help="For this customer only. Default: for all.", metavar="ID")
    ] = None,
) -> dict[str, object]:
    """Set a rule and print its id; the same threshold again changes where it recovers."""
    code = tenant.target.checked_currency(currency)
    rule_id = tenant.run(
        set_rule, code, threshold, customer_id=customer, recover_at_minor=recover_at
    )
    return {"rule_id": rule_id}


@app.add(
    "list",
    table(
        """
            rule_id, wallet~, low at or below# = $threshold_minor,
            recovered from# = $recover_at_minor
        """,
        wallet=lambda rule: rule.wallet_id or "all without a rule of their own",
    ),
)
def list_all(tenant: Tenant) -> list[Rule]:
    """List the rules of a business, oldest first."""
    return tenant.run(list_rules)


@app.add("delete")
def delete(
    tenant: Tenant, rule: Annotated[RuleId, Argument(help="Rule id.", metavar="RULE")]
) -> Sentence:
    """Delete a rule."""
    tenant.run(delete_rule, rule)
    return Sentence({"rule_id": rule}, f"{rule} is gone")
