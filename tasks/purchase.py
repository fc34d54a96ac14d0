"""Purchases: what providers say becomes facts, what is paid becomes credit; what expires goes."""

from typing import Final

from sqlalchemy import Connection

from metering.ids import ProviderEventNumber, PurchaseId
from metering.purchase.expire import expire_credit, tell_expiring
from metering.purchase.facts import PaidFor
from metering.purchase.provider.inbox import process, waiting
from metering.purchase.settle import due_purchases, settle_purchase
from worker.scope import scope
from worker.task import Report, task, wake

SWEEP_EVENTS: Final = 100
SWEEP_PURCHASES: Final = 200


@task("purchase.sweep")
def sweep() -> Report:
    """Wake what waits: events of providers, and purchases whose facts were not followed yet."""
    with scope().transaction() as conn:
        events = waiting(conn, SWEEP_EVENTS)
        purchases = due_purchases(conn, SWEEP_PURCHASES)
    for event_number in events:
        wake("purchase.inbox", event_number)
    for purchase_id in purchases:
        wake("purchase.credit", purchase_id)
    return {}


@task("purchase.inbox")
def inbox(event_number: int) -> Report:
    """Process one event of a provider; delivered again, it finds that done."""
    with scope().transaction() as conn:
        status = process(conn, ProviderEventNumber(event_number), _settle)
    return {} if status is None else {status: 1}


def _settle(conn: Connection, paid_for: PaidFor) -> None:
    """Let the ledger follow what a payment is for."""
    if paid_for.purchase_id is not None:
        settle_purchase(conn, paid_for.purchase_id)


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
