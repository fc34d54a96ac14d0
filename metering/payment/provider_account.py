"""Provider accounts: connected and disabled by the operator, found by their webhooks.

Secrets are stored and used; no list, repr or message shows them.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from sqlalchemy import Connection
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from metering.db import row, rows
from metering.errors import AmbiguousAccountError, BadSignatureError, NotFoundError
from metering.fields import HTTP_URL, Filled255
from metering.ids import AccountId, BusinessId, new_id
from metering.payment import statements
from metering.purchase.reversal_target import Provider
from metering.vault import Vault, vault_of
from metering.webhook.guard import is_this_machine

# The providers that this version knows. An old account can be of another one: see `Provider`.
AccountProvider = Literal["dodo", "stripe"]

# Visible ASCII without blanks: a secret pasted from a vendor's page without the line end.
_SECRET: Final = re.compile(r"[!-~]{1,1000}", re.ASCII)


class NewAccount(BaseModel):
    """An account to connect.

    `webhook_secret`: the secret that signs its webhooks, as the vendor shows it. `api_key`: the key
    of its API. `base_url`: the address of its API, if not the one in the vendor's SDK: https, or
    http on this machine. `product_id`: the product that a hosted page sells, where the provider
    needs one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    provider: AccountProvider
    name: Filled255
    webhook_secret: SecretStr | None = None
    api_key: SecretStr | None = None
    base_url: Annotated[str, StringConstraints(max_length=2048, pattern=HTTP_URL)] | None = None
    product_id: Filled255 | None = None

    @field_validator("webhook_secret", "api_key")
    @classmethod
    def _is_printable(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not _SECRET.fullmatch(secret.get_secret_value()):
            raise ValueError("must be 1 to 1000 visible ASCII characters")
        return secret

    @field_validator("webhook_secret")
    @classmethod
    def _can_verify(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if secret is not None and info.data.get("provider") != "stripe":
            try:
                Webhook(secret.get_secret_value())
            except (ValueError, EmptyWebhookSecretError):
                raise ValueError("must be `whsec_` and base64") from None
        return secret

    @field_validator("base_url")
    @classmethod
    def _hides_the_key(cls, url: str | None) -> str | None:
        """Refuse plain http, which shows the API key to the network, but on this machine."""
        if url is not None and url.startswith("http:") and not is_this_machine(url):
            raise ValueError(
                "must begin with https://, or name this machine: http://127.0.0.1:PORT"
            )
        return url

    @model_validator(mode="after")
    def _is_of_use(self) -> "NewAccount":
        if self.webhook_secret is None and self.api_key is None and self.base_url is None:
            raise ValueError("give a webhook secret, an API key, or both")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderAccount:
    """An account as listed; of its secrets, only whether they exist."""

    account_id: AccountId
    business_id: BusinessId
    provider: Provider
    name: str
    has_webhook_secret: bool
    has_api_key: bool
    base_url: str | None
    product_id: str | None
    disabled_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSource:
    """The account that sends a webhook, and the secret that must have signed it."""

    account_id: AccountId
    business_id: BusinessId
    provider: AccountProvider
    secret: str = field(repr=False)


def connect_account(conn: Connection, business_id: BusinessId, new: NewAccount) -> ProviderAccount:
    """Connect an account; its webhooks are accepted from now on."""
    vault = vault_of(conn)
    values = {
        **new.model_dump(exclude={"webhook_secret", "api_key"}),
        "account_id": new_id("pac"),
        "business_id": business_id,
        "webhook_secret": _sealed(vault, new.webhook_secret),
        "api_key": _sealed(vault, new.api_key),
    }
    return row(ProviderAccount, conn.execute(statements.INSERT_ACCOUNT, values).one())


def page_of_accounts(
    conn: Connection, business_id: BusinessId, *, page: int, after: AccountId | None = None
) -> list[ProviderAccount]:
    """Return up to `page` accounts of a business, newest first, older than `after`."""
    values = {"business_id": business_id, "page": page, "after": after}
    return rows(ProviderAccount, conn.execute(statements.ACCOUNT_PAGE, values))


def disable_account(conn: Connection, business_id: BusinessId, account_id: AccountId) -> None:
    """Accept no more webhooks of an account. Those that are stored are still processed.

    Raises: NotFoundError if the business has no such account.
    """
    values = {"business_id": business_id, "account_id": account_id}
    if not conn.execute(statements.DISABLE_ACCOUNT, values).rowcount:
        raise NotFoundError("provider account", account_id)


def webhook_source(
    conn: Connection, provider: AccountProvider, account_id: AccountId | None = None
) -> WebhookSource:
    """Return the account that a webhook names, or the only one of its provider.

    Raises: BadSignatureError if none accepts webhooks. AmbiguousAccountError if it names none of
    several. UnreadableSecretError if the key that sealed its secret is missing.
    """
    values = {"provider": provider, "account_id": account_id}
    found = conn.execute(statements.ACCOUNT_OF, values).all()
    if not found:
        raise BadSignatureError
    if len(found) > 1:
        raise AmbiguousAccountError(provider)
    (account,) = found
    return WebhookSource(
        account_id=account.account_id,
        business_id=account.business_id,
        provider=provider,
        secret=vault_of(conn).open(account.webhook_secret),
    )


def _sealed(vault: Vault, secret: SecretStr | None) -> str | None:
    return None if secret is None else vault.seal(secret.get_secret_value())
