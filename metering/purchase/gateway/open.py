"""Stands here until the gateways do: no provider answers."""

from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.purchase.gateway.gateway import PaymentGateway


def gateway_of(account: object) -> PaymentGateway:
    """Return the gateway of a provider account.

    Raises:
        GatewayRefusedError: there is no account.
        GatewayUnavailableError: in any other case.

    """
    if account is None:
        raise GatewayRefusedError("nobody", "there is no account")
    raise GatewayUnavailableError("nobody", "there is no gateway")
