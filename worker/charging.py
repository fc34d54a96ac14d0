"""How this installation charges: what its settings say of it."""

from metering.purchase.charge.charge import ChargePolicy
from worker.settings import Settings


def charge_policy_of(config: Settings) -> ChargePolicy:
    """Return the policy that the settings describe."""
    return ChargePolicy(
        retry_s=config.charge_retry_s,
        retry_max_s=config.charge_retry_max_s,
        ask_for_s=config.charge_ask_for_s,
        look_up_for_s=config.charge_look_up_for_s,
        decline_retry_s=config.top_up_retry_s,
    )
