"""Payment: process provider events, request charges, start top-ups."""

from typing import Final

from metering.ids import ChargeId, ProviderEventNumber, PurchaseId
from metering.payment.apply import settle_due
from metering.payment.charges.charge import run_charge
from metering.payment.charges.store import due_charges
from metering.payment.inbox import process, waiting
from metering.payment.top_ups.top_up import start_top_ups
from metering.purchase.settle import due_purchases
from worker.charging import charge_policy_of, open_gateway
from worker.context import checkpoint_of, context
from worker.task import Report, task, wake

SWEEP_EVENTS: Final = 100
SWEEP_PURCHASES: Final = 200
# Each may wait for a provider for many seconds: few at a time, the longest waiting first.
SWEEP_CHARGES: Final = 20
START_TOP_UPS: Final = 100


@task("purchase.sweep")
def sweep() -> Report:
    """Wake provider events that wait, purchases with new facts, and charges that are due."""
    with context().transaction() as conn:
        events = waiting(conn, SWEEP_EVENTS)
        purchases = due_purchases(conn, SWEEP_PURCHASES)
        charges = due_charges(conn, SWEEP_CHARGES)
    for event_number in events:
        wake("purchase.inbox", event_number)
    for purchase_id in purchases:
        wake("purchase.credit", purchase_id)
    for charge_id in charges:
        wake("purchase.charge", charge_id)
    return {}


@task("purchase.inbox")
def inbox(event_number: int) -> Report:
    """Process one provider event; delivered again, it finds that done."""
    retry_s = context().settings.top_up_retry_s
    with context().transaction() as conn:
        status = process(conn, ProviderEventNumber(event_number), retry_s)
    return {} if status is None else {status: 1}


@task("purchase.credit")
def credit(purchase_id: str) -> Report:
    """Settle one purchase; delivered again, it finds that done."""
    retry_s = context().settings.top_up_retry_s
    with context().transaction() as conn:
        settled = settle_due(conn, PurchaseId(purchase_id), retry_s)
    return {"settled": int(settled)}


@task("purchase.top_up")
def top_up() -> Report:
    """Order top-ups for wallets that are low, and wake their charges."""
    with context().transaction() as conn:
        charges = start_top_ups(conn, START_TOP_UPS)
    for charge_id in charges:
        wake("purchase.charge", charge_id)
    return {"started": len(charges)}


@task("purchase.charge")
def charge(charge_id: str) -> Report:
    """Request one charge or look it up; delivered again, it is not due."""
    current = context()
    policy, checkpoint = charge_policy_of(current.settings), checkpoint_of(current.settings)
    called = run_charge(current.transaction, open_gateway, ChargeId(charge_id), policy, checkpoint)
    return {"asked": int(called)}
