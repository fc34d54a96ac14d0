"""`gullak purchase`: paid orders."""

from typing import Annotated

import typer

from metering.ids import PurchaseId
from metering.purchase.orders import PaidOrder, record_paid_order
from worker.commands.options import AsJson, Business, CurrencyCode, Customer
from worker.commands.show import money, print_json
from worker.commands.target import DataDir, Target, business_of, open_target

app = typer.Typer(help="Paid orders become credit.", no_args_is_help=True)


@app.callback()
def purchase() -> None:
    """Keep `record` a name of its own while it is the only command here."""


@app.command("record")
def record(
    *,
    customer: Customer,
    currency: CurrencyCode,
    paid: Annotated[int, typer.Option(help="What was paid, minor units.")],
    order: Annotated[str, typer.Option(help="Order number: once per business.")],
    credit: Annotated[
        int | None, typer.Option(help="What it is worth, minor units. Default: what was paid.")
    ] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Record a paid order; a worker credits it. The same order again is the same purchase."""
    paid_order = PaidOrder(
        order_id=order, customer_id=customer, currency=currency, paid=paid, credit=credit
    )
    with open_target(data_dir) as target:
        with target.transaction() as conn:
            purchase_id = record_paid_order(conn, business_of(conn, business), paid_order)
        is_woken = _wake_credit(target, purchase_id)
    if as_json:
        print_json({"purchase_id": purchase_id, "worker_woken": is_woken})
        return
    worth = money(paid if credit is None else credit, currency, target.settings.currencies)
    later = "" if is_woken else " (the broker is away: the next sweep of a worker finds it)"
    typer.echo(f"{purchase_id} is recorded; a worker credits {worth}{later}")


def _wake_credit(target: Target, purchase_id: PurchaseId) -> bool:
    """Wake the credit after the commit; a broker that is away only costs a sweep's period."""
    # Imported late: Celery takes as long to import as all the rest, and only this command sends.
    from kombu.exceptions import OperationalError  # noqa: PLC0415

    from worker.app import app as celery  # noqa: PLC0415
    from worker.task import wake  # noqa: PLC0415

    celery.conf.update({"broker_url": target.settings.celery_broker_url()})
    try:
        wake("purchase.credit", purchase_id)
    except OperationalError:
        return False
    return True
