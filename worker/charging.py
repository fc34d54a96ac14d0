"""How this installation charges: the policy of its settings, and the gateways of this process."""

import os
from functools import lru_cache
from typing import Final

from metering.payment.charges.charge import ChargePolicy
from metering.payment.vendors.gateway import GatewayAccount, PaymentGateway
from metering.payment.vendors.registry import gateway_of
from worker.settings import Settings, settings

# Each has its own connections. Further accounts open theirs again.
GATEWAYS_KEPT: Final = 100


def charge_policy_of(config: Settings) -> ChargePolicy:
    """Return the policy of the settings."""
    return ChargePolicy(
        retry_s=config.charge_retry_s,
        retry_max_s=config.charge_retry_max_s,
        ask_for_s=config.charge_ask_for_s,
        look_up_for_s=config.charge_look_up_for_s,
        decline_retry_s=config.top_up_retry_s,
    )


def open_gateway(account: GatewayAccount) -> PaymentGateway:
    """Return this process's gateway of an account: connections must not be used after a fork.

    Raises: ConfigurationError if the account is not set up to charge.
    """
    return _opened(os.getpid(), account)


@lru_cache(maxsize=GATEWAYS_KEPT)
def _opened(_pid: int, account: GatewayAccount) -> PaymentGateway:
    return gateway_of(account, timeout_ms=settings().charge_timeout_ms)
