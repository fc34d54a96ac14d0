"""How this installation charges: the policy of the settings, and the gateways of this process."""

import os
from functools import lru_cache
from typing import Final

from metering.payment.charges.charge import ChargePolicy
from metering.payment.vendors.gateway import GatewayAccount, PaymentGateway
from metering.payment.vendors.registry import gateway_of
from worker.settings import Settings, settings

# Each has its own connections. One more account closes the gateway that was used least recently.
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
    """Return the gateway of an account. Each process has its own: a connection survives no fork.

    Raises: ConfigurationError if the account is not set up to charge.
    """
    return _opened(os.getpid(), account)


@lru_cache(maxsize=GATEWAYS_KEPT)
def _opened(_pid: int, account: GatewayAccount) -> PaymentGateway:
    return gateway_of(account, timeout_ms=settings().charge_timeout_ms)
