"""Purchase: expire credit, and announce it before."""

from metering.purchase.expire import announce_expiring, expire_credit
from worker.context import context
from worker.task import Report, task


@task("purchase.expire")
def expire() -> Report:
    """Take expired credit out of the wallets."""
    return {"expired": expire_credit(context().transaction)}


@task("purchase.tell_expiring")
def announce() -> Report:
    """Announce credit that will expire soon."""
    current = context()
    return {"told": announce_expiring(current.transaction, current.settings.expiring_notice_days)}
