"""Charges as stored: before the provider is called, ended once, or parked."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple, TypeAlias

import structlog
from sqlalchemy import Connection

from metering.db import get_one, row, rows
from metering.errors import FieldProblem, InvalidInputError, NotFoundError, UnreadableSecretError
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
from metering.payment.vendors.gateway import GatewayAccount, PaymentGateway
from metering.purchase.reversal_target import Provider
from metering.vault import Vault

ChargeStatus = Literal["new", "pending", "succeeded", "failed"]
OPEN: Final[tuple[ChargeStatus, ...]] = ("new", "pending")

# Opens the gateway of an account. Raises `ConfigurationError` if it is not set up to charge.
Gateways: TypeAlias = Callable[[GatewayAccount], PaymentGateway]

log = structlog.get_logger("gullak.charge")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCharge:
    """A charge to store, for a purchase or for a checkout.

    `payment_method` None: the customer pays on a hosted page.
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

    `is_parked`: it waits for a person; `failure` says why.
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
        """Tell whether it has not ended."""
        return self.status in OPEN


class RequestData(NamedTuple):
    """The rest of what a request for a charge needs: see `statements.REQUEST`."""

    business_id: BusinessId
    email: str
    name: str
    provider: Provider
    api_key: str | None
    base_url: str | None
    product_id: str | None
    is_open: bool
    ordered: str
    age_s: int
    is_over: bool
    refusal: str | None


def gateway_account(vault: Vault, data: RequestData) -> GatewayAccount:
    """Return the account of a charge with its key opened, or marked as unreadable."""
    key, is_unreadable = None, False
    try:
        key = None if data.api_key is None else vault.open(data.api_key)
    except UnreadableSecretError:
        is_unreadable = True
    return GatewayAccount(data.provider, key, data.base_url, data.product_id, is_unreadable)


def store_charge(conn: Connection, new: NewCharge) -> ChargeId:
    """Store a charge that is due at once; its id is the idempotency key at the provider."""
    charge_id = ChargeId(new_id("chg"))
    conn.execute(statements.INSERT_CHARGE, {"charge_id": charge_id, **asdict(new)})
    return charge_id


def due_charges(conn: Connection, page: int) -> list[ChargeId]:
    """Return charges whose next attempt is due, the longest waiting first."""
    return list(conn.execute(statements.DUE_CHARGES, {"page": page}).scalars())


def lock_charge_of(
    conn: Connection,
    *,
    purchase_id: PurchaseId | None = None,
    checkout_id: CheckoutId | None = None,
) -> Charge | None:
    """Return the charge of a purchase or checkout, locked. Returns None if it has none."""
    values = {"purchase_id": purchase_id, "checkout_id": checkout_id}
    found = conn.execute(statements.LOCK_CHARGE_OF, values).one_or_none()
    return None if found is None else row(Charge, found)


def end_charge(
    conn: Connection,
    charge_id: ChargeId,
    status: Literal["succeeded", "failed"],
    *,
    payment_id: str | None = None,
    failure: str | None = None,
) -> bool:
    """End a charge; return False if it had ended before."""
    end = {"status": status, "payment_id": payment_id, "failure": failure}
    return bool(conn.execute(statements.END_CHARGE, {"charge_id": charge_id, **end}).rowcount)


def park_charge(conn: Connection, charge_id: ChargeId, reason: str) -> None:
    """Let a charge wait for a person: money may have moved, and no attempt will tell."""
    values = {"charge_id": charge_id, "reason": reason}
    if conn.execute(statements.PARK_CHARGE, values).rowcount:
        log.warning("charge.parked", charge_id=charge_id, reason=reason)


def get_charge(conn: Connection, business_id: BusinessId, charge_id: ChargeId) -> Charge:
    """Return a charge. Raises: NotFoundError if the business has no such charge."""
    values = {"business_id": business_id, "charge_id": charge_id}
    return get_one(Charge, conn.execute(statements.CHARGE, values), "charge", charge_id)


def page_of_charges(
    conn: Connection,
    business_id: BusinessId,
    *,
    page: int,
    offset: int = 0,
    after: ChargeId | None = None,
    is_parked: bool = False,
) -> list[Charge]:
    """Return up to `page` charges of a business, newest first; `is_parked`: only parked ones."""
    values = {"business_id": business_id, "page": page, "offset": offset, "after": after}
    wanted = {"is_parked": is_parked}
    return rows(Charge, conn.execute(statements.CHARGE_PAGE, {**values, **wanted}))


def account_to_charge(
    conn: Connection, business_id: BusinessId, account_id: str | None
) -> AccountId:
    """Return the provider account that is named, or the only one that is in use.

    Raises: NotFoundError if the business has no such account. InvalidInputError if it is not in
    use, or if none is named and there is not exactly one.
    """
    values = {"business_id": business_id, "account_id": account_id}
    found = conn.execute(statements.ACCOUNTS, values).all()
    if account_id is not None and not found:
        raise NotFoundError("provider account", account_id)
    if len(found) == 1 and found[0].is_enabled:
        return AccountId(found[0].account_id)
    reason = "is not in use any more"
    if account_id is None:
        reason = f"there are {len(found)} accounts in use" + (": name one" if found else "")
    raise InvalidInputError(FieldProblem("account_id", reason))
