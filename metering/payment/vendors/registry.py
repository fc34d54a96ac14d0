"""From a provider account to its gateway."""

from metering.errors import ConfigurationError
from metering.payment.transport import TIMEOUT_MS, bounded_client
from metering.payment.vendors.gateway import GatewayAccount, PaymentGateway
from metering.webhook.endpoints import check_url


def gateway_of(account: GatewayAccount, *, timeout_ms: int = TIMEOUT_MS) -> PaymentGateway:
    """Return the gateway of an account; each of its requests ends within `timeout_ms`.

    The API may be at a private address only if the account names the address. The vendors' SDKs are
    imported here: each takes some tenths of a second, and few processes need one.

    Raises: ConfigurationError if the key, the address or the provider cannot be used.
    """
    key, base_url = account.api_key, account.base_url
    if not key or not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError(f"the {account.provider} account has no good api_key")
    if base_url is not None and check_url(base_url):
        raise ConfigurationError(f"the {account.provider} account's base_url is no URL")
    http = bounded_client(allow_private=base_url is not None, timeout_ms=timeout_ms)
    if account.provider == "stripe":
        from metering.payment.vendors.stripe.gateway import StripeGateway  # noqa: PLC0415

        return StripeGateway(http, api_key=key, base_url=base_url)
    if account.provider == "dodo":
        from metering.payment.vendors.dodo.gateway import DodoGateway  # noqa: PLC0415

        return DodoGateway(http, api_key=key, base_url=base_url, product_id=account.product_id)
    if account.provider == "local" and base_url is not None:
        from metering.payment.vendors.local.gateway import LocalGateway  # noqa: PLC0415

        return LocalGateway(http, api_key=key, base_url=base_url)
    raise ConfigurationError(f"there is no gateway for {account.provider!r} at {base_url}")
