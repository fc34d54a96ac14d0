"""Where this installation's webhooks may go."""

from metering.webhook.guard import Reach
from worker.settings import Settings


def reach_of(config: Settings) -> Reach:
    """Return which receivers the settings allow."""
    return Reach(loopback=config.webhook_allow_loopback, private=config.webhook_allow_private)
