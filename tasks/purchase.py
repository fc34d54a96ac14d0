"""Purchases: a paid order becomes credit, once."""

from typing import Final

from metering.ids import PurchaseId
from metering.purchase.credit import credit_purchase, uncredited
from worker.scope import scope
from worker.task import Report, task, wake

SWEEP_PURCHASES: Final = 200


@task("purchase.sweep")
def sweep() -> Report:
    """Wake a credit for every purchase that is paid and not credited."""
    with scope().transaction() as conn:
        waiting = uncredited(conn, SWEEP_PURCHASES)
    for purchase_id in waiting:
        wake("purchase.credit", purchase_id)
    return {}


@task("purchase.credit")
def credit(purchase_id: str) -> Report:
    """Credit one purchase; delivered again, it finds that done."""
    with scope().transaction() as conn:
        done = credit_purchase(conn, PurchaseId(purchase_id))
    return {"credited": int(done)}
