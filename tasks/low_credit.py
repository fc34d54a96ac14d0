"""Stage 5: the scheduled check of low-credit rules."""

from metering.low_credit.check import check_all
from worker.context import context
from worker.task import Report, task


@task("low_credit.check")
def check() -> Report:
    """Check all wallets: a rule may be newer than their last entry."""
    return {"crossings": check_all(context().transaction)}
