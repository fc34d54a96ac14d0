"""The commands over the use cases: a module per noun, a line each here."""

import typer

from worker.cli import (
    business,
    charge,
    checkout,
    customer,
    endpoint,
    entry,
    env,
    events,
    import_usage,
    keys,
    lot,
    meter,
    package,
    price,
    providers,
    purchase,
    refused,
    rule,
    status,
    top_up,
    vault,
    verify,
    wallet,
    webhook,
)


def add_commands(app: typer.Typer) -> None:
    """Add every command of this package to `gullak`."""
    app.add_typer(business.app, name="business")
    app.add_typer(keys.app, name="keys")
    app.add_typer(customer.app, name="customer")
    app.add_typer(meter.app, name="meter")
    app.add_typer(price.app, name="price")
    app.add_typer(wallet.app, name="wallet")
    app.add_typer(rule.app, name="rule")
    app.add_typer(endpoint.app, name="endpoint")
    app.add_typer(package.app, name="package")
    app.add_typer(purchase.app, name="purchase")
    app.add_typer(providers.app, name="providers")
    app.add_typer(checkout.app, name="checkout")
    app.add_typer(top_up.app, name="top-up")
    app.add_typer(charge.app, name="charge")
    app.add_typer(webhook.app, name="webhook")
    app.add_typer(vault.app, name="secrets")
    app.add_typer(verify.app, name="verify")
    app.command()(entry.credit)
    app.command()(entry.debit)
    app.command()(customer.balance)
    app.command()(entry.history)
    app.command()(lot.lots)
    app.command()(lot.explain)
    app.command()(lot.refund)
    app.command()(events.events)
    app.add_typer(refused.app, name="refused")
    app.command()(refused.replay)
    app.command("import")(import_usage.import_usage)
    app.command()(env.env)
    app.command()(status.status)
