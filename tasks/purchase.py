"""Purchases: what providers say becomes facts, what is paid becomes credit; what expires goes.

What is to be paid is charged, once.
"""

from typing import Final

from sqlalchemy import Connection

from metering.ids import ChargeId, ProviderEventNumber, PurchaseId
from metering.payment.charges.charge import due_charges, run_charge, settle_due, settle_paid
from metering.payment.facts import PaidFor
from metering.payment.inbox import process, waiting
from metering.payment.top_ups.top_up import start_top_ups
from metering.purchase.expire import expire_credit, tell_expiring
from metering.purchase.settle import due_purchases
from worker.charging import charge_policy_of, open_gateway
from worker.context import context
from worker.failpoint import checkpoint_of
from worker.task import Report, task, wake

SWEEP_EVENTS: Final = 100
SWEEP_PURCHASES: Final = 200
# Each may wait for a provider for many seconds: few at a time, the longest waiting first.
SWEEP_CHARGES: Final = 20
START_TOP_UPS: Final = 100


@task("purchase.sweep")
def sweep() -> Report:
    """Wake what waits: events of providers, purchases that facts have come for, charges due."""
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
    """Process one event of a provider; delivered again, it finds that done."""
    with context().transaction() as conn:
        status = process(conn, ProviderEventNumber(event_number), _settle)
    return {} if status is None else {status: 1}


def _settle(conn: Connection, paid_for: PaidFor) -> None:
    """Let the ledger follow what a payment is for."""
    settle_paid(conn, paid_for, charge_policy_of(context().settings))


@task("purchase.credit")
def credit(purchase_id: str) -> Report:
    """Settle one purchase; delivered again, it finds that done."""
    with context().transaction() as conn:
        done = settle_due(conn, PurchaseId(purchase_id), charge_policy_of(context().settings))
    return {"settled": int(done)}


@task("purchase.expire")
def expire() -> Report:
    """Take out credit whose time is over."""
    return {"expired": expire_credit(context().transaction)}


@task("purchase.tell_expiring")
def tell() -> Report:
    """Tell of credit that will expire soon."""
    at = context()
    return {"told": tell_expiring(at.transaction, at.settings.expiring_notice_days)}


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
    """Ask for one charge, or look what has become of it; delivered again, it is not due."""
    at = context()
    policy, checkpoint = charge_policy_of(at.settings), checkpoint_of(at.settings)
    asked = run_charge(at.transaction, open_gateway, ChargeId(charge_id), policy, checkpoint)
    return {"asked": int(asked)}
