"""Accounts at payment providers: connected by the operator, disabled, found by their webhooks.

Secrets go in and are used; they are in no list, no repr and no message.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from sqlalchemy import Connection, Row
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from metering.errors import AmbiguousAccountError, BadSignatureError, NotFoundError
from metering.fields import Filled255
from metering.ids import AccountId, BusinessId, new_id
from metering.payment import statements
from metering.vault import Vault, vault_of

# Where accounts may be; `local`: a gateway of the shop's own that signs as Dodo does.
AccountProvider = Literal["dodo", "stripe", "local"]

# Visible ASCII without blanks: what pastes from a vendor's page, without the line's end.
_SECRET: Final = re.compile(r"[!-~]{1,1000}", re.ASCII)
_HTTP_URL: Final = r"^https?://[^\s\x00]+$"


class NewAccount(BaseModel):
    """An account to connect.

    `webhook_secret`: what its webhooks are signed with, as the vendor shows it. `api_key`: what its
    API is called with. `base_url`: where its API is, if not where the vendor's SDK looks for it.
    `product_id`: what a hosted checkout sells, where the provider wants to know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    provider: AccountProvider
    name: Filled255
    webhook_secret: SecretStr | None = None
    api_key: SecretStr | None = None
    base_url: Annotated[str, StringConstraints(max_length=2048, pattern=_HTTP_URL)] | None = None
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

    @model_validator(mode="after")
    def _is_of_use(self) -> "NewAccount":
        if self.webhook_secret is None and self.api_key is None and self.base_url is None:
            raise ValueError("give a webhook secret, an API key, or both")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account as listed; of its secrets only whether they are there."""

    account_id: AccountId
    business_id: BusinessId
    provider: AccountProvider
    name: str
    has_webhook_secret: bool
    has_api_key: bool
    base_url: str | None
    product_id: str | None
    disabled_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Whose webhook a request may be, and the secret that has to have signed it."""

    account_id: AccountId
    business_id: BusinessId
    provider: AccountProvider
    secret: str = field(repr=False)


def connect_account(conn: Connection, business_id: BusinessId, new: NewAccount) -> Account:
    """Connect an account; its webhooks are taken from now on."""
    vault = vault_of(conn)
    values = {
        "account_id": new_id("pac"),
        "business_id": business_id,
        "provider": new.provider,
        "name": new.name,
        "webhook_secret": _sealed(vault, new.webhook_secret),
        "api_key": _sealed(vault, new.api_key),
        "base_url": new.base_url,
        "product_id": new.product_id,
    }
    return _account(conn.execute(statements.INSERT_ACCOUNT, values).one())


def page_of_accounts(
    conn: Connection, business_id: BusinessId, *, page: int, after: AccountId | None = None
) -> list[Account]:
    """Return up to `page` accounts of a business, newest first, older than `after`."""
    values = {"business_id": business_id, "page": page, "after": after}
    return [_account(row) for row in conn.execute(statements.ACCOUNT_PAGE, values)]


def disable_account(conn: Connection, business_id: BusinessId, account_id: AccountId) -> None:
    """Take no more webhooks of an account; what was received is processed. Twice is once.

    Raises:
        NotFoundError: the business has no such account.

    """
    values = {"business_id": business_id, "account_id": account_id}
    if not conn.execute(statements.DISABLE_ACCOUNT, values).rowcount:
        raise NotFoundError("provider account", account_id)


def sender_of(
    conn: Connection, provider: AccountProvider, account_id: AccountId | None = None
) -> Sender:
    """Return the account that a webhook is for: the one it names, or the only one there is.

    Raises:
        BadSignatureError: there is none that takes webhooks.
        AmbiguousAccountError: it names none, and there are several.
        UnreadableSecretError: its secret was sealed with a key that is not here.

    """
    values = {"provider": provider, "account_id": account_id}
    rows = conn.execute(statements.ACCOUNT_OF, values).all()
    if not rows:
        raise BadSignatureError
    if len(rows) > 1:
        raise AmbiguousAccountError(provider)
    (row,) = rows
    return Sender(
        account_id=row.account_id,
        business_id=row.business_id,
        provider=provider,
        secret=vault_of(conn).open(row.webhook_secret),
    )


def _sealed(vault: Vault, secret: SecretStr | None) -> str | None:
    return None if secret is None else vault.seal(secret.get_secret_value())


def _account(row: Row[Any]) -> Account:
    return Account(**row._mapping)  # noqa: SLF001
