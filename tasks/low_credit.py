"""Stage 5: the scheduled check, for what posting did not see."""

from metering.low_credit.check import check_all
from worker.context import context
from worker.task import Report, task


@task("low_credit.check")
def check() -> Report:
    """Walk all wallets; a rule may have come or changed since they last moved."""
    return {"crossings": check_all(context().transaction)}
