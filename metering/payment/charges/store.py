"""Charges as stored: there before anybody is asked for money, ended once, parked where unclear."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

import structlog
from sqlalchemy import Connection, Row

from metering.errors import (
    FieldProblem,
    InvalidInputError,
    NotFoundError,
    UnreadableSecretError,
)
from metering.ids import (
    AccountId,
    BusinessId,
    ChargeId,
    CheckoutId,
    Currency,
    CustomerId,
    PurchaseId,
    new_id,
)
from metering.payment.charges import statements
from metering.payment.vendors.gateway import PaymentGateway
from metering.purchase.reversal_target import Provider
from metering.vault import Vault

ChargeStatus = Literal["new", "pending", "succeeded", "failed"]
OPEN: Final[tuple[ChargeStatus, ...]] = ("new", "pending")

log = structlog.get_logger("gullak.charge")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderAccount:
    """What a gateway is opened with."""

    account_id: AccountId
    provider: Provider
    api_key: str | None = field(repr=False)
    base_url: str | None
    product_id: str | None
    # Its key was sealed with one that is not here: the operator's fault, and passing.
    is_unreadable: bool = False


def account_of(vault: Vault, found: Row[Any]) -> ProviderAccount:
    """Return the account that a row of `statements.TO_ASK` names, with its key opened."""
    account = ProviderAccount(
        account_id=found.account_id,
        provider=found.provider,
        api_key=None,
        base_url=found.base_url,
        product_id=found.product_id,
    )
    try:
        key = None if found.api_key is None else vault.open(found.api_key)
    except UnreadableSecretError:
        return replace(account, is_unreadable=True)
    return replace(account, api_key=key)


# Opens the gateway of an account. Raises `ConfigurationError` where it is not set up for that.
Gateways: TypeAlias = Callable[[ProviderAccount], PaymentGateway]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCharge:
    """What is to be charged, for a purchase or for a checkout.

    `payment_method` None: the customer pays on a page of the provider.
    """

    business_id: BusinessId
    account_id: AccountId
    customer_id: CustomerId
    amount_minor: int
    currency: Currency
    purchase_id: PurchaseId | None = None
    checkout_id: CheckoutId | None = None
    payment_method: str | None = None
    return_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge(NewCharge):
    """A charge as stored. See the migration for each column.

    `is_parked`: nobody asks any more by himself; `failure` says why.
    """

    charge_id: ChargeId
    status: ChargeStatus
    payment_id: str | None
    url: str | None
    failure: str | None
    attempts: int
    created_at: datetime
    is_parked: bool

    @property
    def is_top_up(self) -> bool:
        """Tell whether it buys credit with a saved payment method, while no customer waits."""
        return self.checkout_id is None and self.payment_method is not None

    @property
    def is_open(self) -> bool:
        """Tell whether it has not come to its end."""
        return self.status in OPEN


def charge_of(row: Row[Any]) -> Charge:
    """Return the charge of a row."""
    return Charge(**row._mapping)  # noqa: SLF001


def store_charge(conn: Connection, new: NewCharge) -> ChargeId:
    """Store a charge that is due at once; its id is the idempotency key at the provider."""
    charge_id = ChargeId(new_id("chg"))
    values = {
        "charge_id": charge_id,
        "business_id": new.business_id,
        "account_id": new.account_id,
        "customer_id": new.customer_id,
        "purchase_id": new.purchase_id,
        "checkout_id": new.checkout_id,
        "amount_minor": new.amount_minor,
        "currency": new.currency,
        "payment_method": new.payment_method,
        "return_url": new.return_url,
    }
    conn.execute(statements.INSERT_CHARGE, values)
    return charge_id


def due_charges(conn: Connection, page: int) -> list[ChargeId]:
    """Return charges to ask for, or to look after, the longest waiting first."""
    return list(conn.execute(statements.DUE_CHARGES, {"page": page}).scalars())


def lock_charge_of(
    conn: Connection,
    *,
    purchase_id: PurchaseId | None = None,
    checkout_id: CheckoutId | None = None,
) -> Charge | None:
    """Return the charge of a purchase or checkout, locked; None: it has none."""
    values = {"purchase_id": purchase_id, "checkout_id": checkout_id}
    row = conn.execute(statements.LOCK_CHARGE_OF, values).one_or_none()
    return None if row is None else charge_of(row)


def end_charge(
    conn: Connection,
    charge_id: ChargeId,
    status: Literal["succeeded", "failed"],
    *,
    payment_id: str | None = None,
    failure: str | None = None,
) -> bool:
    """End a charge; return False if it had come to an end before."""
    values = {
        "charge_id": charge_id,
        "status": status,
        "payment_id": payment_id,
        "failure": failure,
    }
    return bool(conn.execute(statements.END_CHARGE, values).rowcount)


def park_charge(conn: Connection, charge_id: ChargeId, reason: str) -> None:
    """Leave a charge to be looked at: money may have moved, and nobody finds out by himself."""
    values = {"charge_id": charge_id, "reason": reason}
    if conn.execute(statements.PARK_CHARGE, values).rowcount:
        log.warning("charge.parked", charge_id=charge_id, reason=reason)


def get_charge(conn: Connection, business_id: BusinessId, charge_id: ChargeId) -> Charge:
    """Return a charge.

    Raises:
        NotFoundError: the business has no such charge.

    """
    values = {"business_id": business_id, "charge_id": charge_id}
    row = conn.execute(statements.CHARGE, values).one_or_none()
    if row is None:
        raise NotFoundError("charge", charge_id)
    return charge_of(row)


def page_of_charges(
    conn: Connection,
    business_id: BusinessId,
    *,
    page: int,
    offset: int = 0,
    after: ChargeId | None = None,
    is_parked: bool = False,
) -> list[Charge]:
    """Return up to `page` charges of a business, newest first; `is_parked`: only the parked."""
    values = {
        "business_id": business_id,
        "page": page,
        "offset": offset,
        "after": after,
        "is_parked": is_parked,
    }
    return [charge_of(row) for row in conn.execute(statements.CHARGE_PAGE, values)]


def account_to_charge(
    conn: Connection, business_id: BusinessId, account_id: str | None
) -> AccountId:
    """Return the provider account that was named, or the only one that is in use.

    Raises:
        NotFoundError: the business has no such account.
        InvalidInputError: it is not in use, or none was named and there is not exactly one.

    """
    values = {"business_id": business_id, "account_id": account_id}
    known = conn.execute(statements.ACCOUNTS, values).all()
    if account_id is not None and not known:
        raise NotFoundError("provider account", account_id)
    if len(known) == 1 and known[0].is_enabled:
        return AccountId(known[0].account_id)
    reason = "is not in use any more"
    if account_id is None:
        reason = f"there are {len(known)} accounts in use" + (": name one" if known else "")
    raise InvalidInputError(FieldProblem("account_id", reason))
