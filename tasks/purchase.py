"""Purchases: a paid order becomes credit, once; what is to be paid is charged, once."""

from typing import Final

from metering.ids import ChargeId, PurchaseId
from metering.purchase.charge.charge import due_charges, run_charge
from metering.purchase.charge.top_up import start_top_ups
from metering.purchase.settle import due_purchases, settle_purchase
from worker.charging import charge_policy_of, open_gateway
from worker.failpoint import checkpoint_of
from worker.scope import scope
from worker.task import Report, task, wake

SWEEP_PURCHASES: Final = 200
# Each may wait for a provider for many seconds: few at a time, the longest waiting first.
SWEEP_CHARGES: Final = 20
START_TOP_UPS: Final = 100


@task("purchase.sweep")
def sweep() -> Report:
    """Wake every purchase whose facts the ledger has not followed yet, and charges that are due."""
    with scope().transaction() as conn:
        waiting = due_purchases(conn, SWEEP_PURCHASES)
        charges = due_charges(conn, SWEEP_CHARGES)
    for purchase_id in waiting:
        wake("purchase.credit", purchase_id)
    for charge_id in charges:
        wake("purchase.charge", charge_id)
    return {}


@task("purchase.credit")
def credit(purchase_id: str) -> Report:
    """Settle one purchase; delivered again, it finds that done."""
    with scope().transaction() as conn:
        done = settle_purchase(conn, PurchaseId(purchase_id))
    return {"settled": int(done)}


@task("purchase.top_up")
def top_up() -> Report:
    """Order top-ups for wallets that are low, and wake their charges."""
    with scope().transaction() as conn:
        charges = start_top_ups(conn, START_TOP_UPS)
    for charge_id in charges:
        wake("purchase.charge", charge_id)
    return {"started": len(charges)}


@task("purchase.charge")
def charge(charge_id: str) -> Report:
    """Ask for one charge, or look what has become of it; delivered again, it is not due."""
    at = scope()
    policy, checkpoint = charge_policy_of(at.settings), checkpoint_of(at.settings)
    asked = run_charge(at.transaction, open_gateway, ChargeId(charge_id), policy, checkpoint)
    return {"asked": int(asked)}
