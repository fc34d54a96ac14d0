"""From a provider's account to its gateway."""

from typing import Protocol

from metering.errors import ConfigurationError
from metering.payment.transport import TIMEOUT_MS, bounded_client
from metering.payment.vendors.gateway import PaymentGateway
from metering.webhook.endpoints import check_url


class GatewayAccount(Protocol):
    """What a gateway needs of a row of `provider_accounts`. The key is a secret."""

    @property
    def provider(self) -> str:
        """`stripe`, `dodo` or `local`."""
        ...

    @property
    def api_key(self) -> str | None:
        """What the API is called with."""
        ...

    @property
    def base_url(self) -> str | None:
        """Where the API is; None: where the vendor's SDK looks for it."""
        ...

    @property
    def product_id(self) -> str | None:
        """What is sold on a hosted page (Dodo)."""
        ...


def gateway_of(account: GatewayAccount, *, timeout_ms: int = TIMEOUT_MS) -> PaymentGateway:
    """Return the gateway of an account; each of its requests ends within `timeout_ms`.

    Its API may be at a private address only if the account says where it is. The vendors' SDKs
    are imported here: each takes some tenths of a second, and few processes need one.

    Raises:
        ConfigurationError: it has no key, or no good address, or nobody knows the provider.

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
