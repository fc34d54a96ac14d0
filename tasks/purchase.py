"""Purchases: what is paid becomes credit, once; and credit that has expired goes."""

from typing import Final

from metering.ids import PurchaseId
from metering.purchase.expire import expire_credit, tell_expiring
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


@task("purchase.expire")
def expire() -> Report:
    """Take out credit whose time is over."""
    return {"expired": expire_credit(scope().transaction)}


@task("purchase.tell_expiring")
def tell() -> Report:
    """Tell of credit that will expire soon."""
    with scope().transaction() as conn:
        told = tell_expiring(conn, scope().settings.expiring_notice_days)
    return {"told": told}
