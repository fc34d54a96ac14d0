"""Purchases: a paid order becomes credit, once."""

from typing import Final

from metering.ids import PurchaseId
from metering.purchase.settle import due_purchases, settle_purchase
from worker.scope import scope
from worker.task import Report, task, wake

SWEEP_PURCHASES: Final = 200


@task("purchase.sweep")
def sweep() -> Report:
    """Wake every purchase whose facts the ledger has not followed yet."""
    with scope().transaction() as conn:
        waiting = due_purchases(conn, SWEEP_PURCHASES)
    for purchase_id in waiting:
        wake("purchase.credit", purchase_id)
    return {}


@task("purchase.credit")
def credit(purchase_id: str) -> Report:
    """Settle one purchase; delivered again, it finds that done."""
    with scope().transaction() as conn:
        done = settle_purchase(conn, PurchaseId(purchase_id))
    return {"settled": int(done)}
