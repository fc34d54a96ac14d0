"""`gullak rule`: when a low balance is told."""

from typing import Annotated

import typer

from metering.ids import CustomerId, RuleId
from metering.low_credit.rules import delete_rule, list_rules, set_rule
from worker.cli.options import AsJson, Business, CurrencyCode, minor
from worker.cli.show import money, print_json, print_table
from worker.cli.target import DataDir, business_of, open_target

app = typer.Typer(help="When a low balance is told.", no_args_is_help=True)


@app.command("set")
def set_one(
    *,
    currency: CurrencyCode,
    threshold: Annotated[int, minor("--threshold", "Alert at or below this balance.")],
    recover_at: Annotated[
        int | None,
        minor("--recover-at", "Armed again from this balance on. Default: threshold + 1."),
    ] = None,
    customer: Annotated[
        str | None, typer.Option(help="For this customer only. Default: for all.", metavar="ID")
    ] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Set a rule and print its id; the same threshold again changes where it recovers."""
    with open_target(data_dir) as target, target.transaction() as conn:
        rule_id = set_rule(
            conn,
            business_of(conn, business),
            target.checked_currency(currency),
            threshold,
            customer_id=None if customer is None else CustomerId(customer),
            recover_at_minor=recover_at,
        )
    if as_json:
        print_json({"rule_id": rule_id})
    else:
        typer.echo(rule_id)


@app.command("list")
def list_all(
    *, business: Business = None, as_json: AsJson = False, data_dir: DataDir = None
) -> None:
    """List the rules of a business, oldest first."""
    with open_target(data_dir) as target, target.transaction() as conn:
        rules = list_rules(conn, business_of(conn, business))
    if as_json:
        print_json(rules)
        return
    decimals = target.settings.currencies
    rows = [
        (
            rule.rule_id,
            rule.wallet_id or "all without a rule of their own",
            money(rule.threshold_minor, rule.currency, decimals),
            money(rule.recover_at_minor, rule.currency, decimals),
        )
        for rule in rules
    ]
    print_table(("rule_id", "wallet~", "low at or below#", "recovered from#"), rows)


@app.command("delete")
def delete(
    *,
    rule: Annotated[str, typer.Argument(help="Rule id.", metavar="RULE")],
    business: Business = None,
    data_dir: DataDir = None,
) -> None:
    """Take a rule away."""
    with open_target(data_dir) as target, target.transaction() as conn:
        delete_rule(conn, business_of(conn, business), RuleId(rule))
    typer.echo(f"{rule} is gone")
