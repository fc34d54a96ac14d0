"""From a provider account to its gateway."""

from typing import get_args

from metering.errors import ConfigurationError, GatewayRefusedError
from metering.payment.provider_account import AccountProvider
from metering.payment.transport import TIMEOUT_MS, bounded_client
from metering.payment.vendors.gateway import GatewayAccount, PaymentGateway
from metering.webhook.endpoints import check_url


def gateway_of(account: GatewayAccount, *, timeout_ms: int = TIMEOUT_MS) -> PaymentGateway:
    """Return the gateway of an account; each of its requests ends within `timeout_ms`.

    The API may be at a private address only if the account names the address. The vendors' SDKs are
    imported here: each takes some tenths of a second, and few processes need one.

    Raises: ConfigurationError if the key or the address cannot be used. GatewayRefusedError if
    only an earlier version knew the provider.
    """
    if account.provider not in get_args(AccountProvider):
        raise GatewayRefusedError(account.provider, "this version does not know the provider")
    key, base_url = account.api_key, account.base_url
    if not key or not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError(f"the {account.provider} account has no good api_key")
    if base_url is not None and check_url(base_url):
        raise ConfigurationError(f"the {account.provider} account's base_url is no URL")
    http = bounded_client(allow_private=base_url is not None, timeout_ms=timeout_ms)
    if account.provider == "stripe":
        from metering.payment.vendors.stripe.gateway import StripeGateway  # noqa: PLC0415

        return StripeGateway(http, api_key=key, base_url=base_url)
    from metering.payment.vendors.dodo.gateway import DodoGateway  # noqa: PLC0415

    return DodoGateway(http, api_key=key, base_url=base_url, product_id=account.product_id)
