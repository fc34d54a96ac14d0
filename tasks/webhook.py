"""The webhook stage: find what is due, deliver it."""

import os
from functools import cache
from typing import Final

from metering.webhook.deliver import DeliveryPolicy, count_due, deliver_due
from metering.webhook.send import HttpSender
from worker.context import checkpoint_of, context
from worker.metrics import WEBHOOK_ATTEMPTS
from worker.settings import Settings
from worker.task import Report, task, wake

# A run goes on while it finds work; more runs at once help only when very much is due.
RUNS_PER_SWEEP_MAX: Final = 3
# Below the soft limit of a task.
RUN_MAX_S: Final = 40.0


@task("webhook.sweep")
def sweep() -> Report:
    """Wake one run for each share of the deliveries that are due."""
    current = context()
    policy = policy_of(current.settings)
    with current.transaction() as conn:
        due = count_due(conn, policy, RUNS_PER_SWEEP_MAX * policy.prompt_max)
    runs = -(-due // policy.prompt_max)  # ceiling
    for _ in range(runs):
        wake("webhook.deliver")
    return {"due": due, "runs": runs}


@task("webhook.deliver")
def deliver() -> Report:
    """Deliver what is due."""
    current = context()
    config = current.settings
    report = deliver_due(
        current.transaction, _sender_of(os.getpid()), policy_of(config), checkpoint_of(config)
    )
    counts = {"delivered": report.delivered, "failed": report.failed, "dead": report.dead}
    for outcome, attempts in counts.items():
        WEBHOOK_ATTEMPTS.labels(outcome).inc(attempts)
    return counts


def policy_of(config: Settings) -> DeliveryPolicy:
    """Return the policy that the settings describe."""
    return DeliveryPolicy(
        retry_s=config.webhook_retry_s,
        timeout_s=config.webhook_timeout_s,
        disable_after=config.webhook_disable_after,
        # What is left of a task's time when its last calls take the whole timeout.
        claim_for_s=max(1.0, RUN_MAX_S - config.webhook_timeout_s),
    )


@cache
def _sender_of(_pid: int) -> HttpSender:
    """Return this process's sender: threads do not survive a fork."""
    config = context().settings
    return HttpSender(
        timeout_s=config.webhook_timeout_s,
        allow_private=config.webhook_allow_private,
        allow_loopback=config.webhook_allow_loopback,
    )
