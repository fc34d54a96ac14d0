"""Automatic top-ups: a wallet that is low buys packages, within caps, one purchase at a time.

A posting marks the rule of a low wallet in its own transaction (`low_credit.crossing`, which is
below this package and sees every balance under its lock); the sweep finds the mark. The lock of the
rule makes one top-up of many crossings, and a unique index makes sure of it.
"""

from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import psycopg
import structlog
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Row

from metering.db import DATABASE_ERRORS, cause_of, database_now, get_one, is_server_fault, rows
from metering.errors import FieldProblem, GullakError, InvalidInputError
from metering.fields import Filled64, Filled255, PositiveMinor, SignedMinor
from metering.ids import (
    AccountId,
    BusinessId,
    ChargeId,
    Currency,
    CustomerId,
    PackageId,
    PurchaseId,
    WalletId,
)
from metering.ledger.wallets import wallet_of
from metering.low_credit.crossing import mark_top_ups
from metering.money import INT64_MAX
from metering.payment.charges.store import NewCharge, account_to_charge, store_charge
from metering.payment.top_ups import statements
from metering.payment.top_ups.caps import Order, day_of, month_of, order_for
from metering.payment.top_ups.result import tell_of_failure
from metering.purchase.packages import Package, get_package
from metering.purchase.purchases import Terms, place, terms_of

log = structlog.get_logger("gullak.top_up")

DECLINES_MAX: Final = 3
# How long a rule waits after an error of its own.
FAULT_WAIT: Final = timedelta(hours=1)


class NewTopUp(BaseModel):
    """A rule to set; amounts in minor units of the wallet's currency.

    At or below `threshold`, one charge buys as many packages as lift the wallet above it. `day_cap`
    and `month_cap` limit the charges of a calendar day and month in UTC. After `declines_max`
    declines in a row the rule is disabled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: SignedMinor
    package_id: Filled64
    payment_method: Filled255
    day_cap: PositiveMinor
    month_cap: PositiveMinor
    declines_max: Annotated[int, Field(strict=True, ge=1, le=100)] = DECLINES_MAX
    account_id: Filled64 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUp:
    """A rule as stored. `pending_purchase_id`: the top-up that is running."""

    wallet_id: WalletId
    business_id: BusinessId
    customer_id: CustomerId
    currency: Currency
    threshold_minor: int
    package_id: PackageId
    account_id: AccountId
    payment_method: str
    day_cap_minor: int
    month_cap_minor: int
    declines: int
    declines_max: int
    low_since: datetime | None
    retry_at: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None
    created_at: datetime
    updated_at: datetime
    pending_purchase_id: PurchaseId | None


# --- rules ----------------------------------------------------------------------------------------


def set_top_up(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId, currency: str, new: NewTopUp
) -> TopUp:
    """Set or change the rule of a wallet; a disabled rule stays disabled.

    Raises: NotFoundError or UnsupportedCurrencyError if there is no such wallet, package or
    account. InvalidInputError if the package has another currency or is off sale, a cap is below
    its price or the day's cap, or no account can be chosen.
    """
    wallet = wallet_of(conn, business_id, customer_id, currency)
    package = get_package(conn, business_id, PackageId(new.package_id))
    _check(new, package, wallet.currency)
    values = {
        "wallet_id": wallet.wallet_id,
        "business_id": business_id,
        "threshold_minor": new.threshold,
        "package_id": package.package_id,
        "account_id": account_to_charge(conn, business_id, new.account_id),
        "payment_method": new.payment_method,
        "day_cap_minor": new.day_cap,
        "month_cap_minor": new.month_cap,
        "declines_max": new.declines_max,
    }
    conn.execute(statements.SET_RULE, values)
    mark_top_ups(conn, [wallet.wallet_id], database_now(conn))
    return _rule(conn, business_id, wallet.wallet_id)


def _check(new: NewTopUp, package: Package, currency: Currency) -> None:
    if package.archived_at is not None:
        raise InvalidInputError(FieldProblem("package_id", "is not on sale any more"))
    if package.currency != currency:
        reason = f"sells {package.currency}, not {currency}"
        raise InvalidInputError(FieldProblem("package_id", reason))
    if new.day_cap < package.price_minor:
        reason = f"is below the price of one package, {package.price_minor}"
        raise InvalidInputError(FieldProblem("day_cap", reason))
    if new.month_cap < new.day_cap:
        raise InvalidInputError(FieldProblem("month_cap", "is below day_cap"))


def get_top_up(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId, currency: str
) -> TopUp:
    """Return the rule of a wallet.

    Raises: NotFoundError or UnsupportedCurrencyError if there is no such wallet or rule.
    """
    wallet = wallet_of(conn, business_id, customer_id, currency)
    return _rule(conn, business_id, wallet.wallet_id)


def _rule(conn: Connection, business_id: BusinessId, wallet_id: WalletId) -> TopUp:
    values = {"business_id": business_id, "wallet_id": wallet_id}
    return get_one(TopUp, conn.execute(statements.RULE, values), "top-up rule of wallet", wallet_id)


def page_of_top_ups(
    conn: Connection,
    business_id: BusinessId,
    *,
    page: int,
    offset: int = 0,
    after: WalletId | None = None,
) -> list[TopUp]:
    """Return up to `page` rules of a business, those of the newest wallets first."""
    values = {"business_id": business_id, "page": page, "offset": offset, "after": after}
    return rows(TopUp, conn.execute(statements.RULE_PAGE, values))


def delete_top_up(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId, currency: str
) -> None:
    """Delete the rule of a wallet; a charge that was not requested yet is not made.

    Raises: NotFoundError or UnsupportedCurrencyError if there is no such wallet or rule.
    """
    rule = get_top_up(conn, business_id, customer_id, currency)
    conn.execute(statements.DELETE_RULE, asdict(rule))


def enable_top_up(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId, currency: str
) -> TopUp:
    """Enable the rule of a wallet again, and forget its declines.

    Raises: NotFoundError or UnsupportedCurrencyError if there is no such wallet or rule.
    """
    rule = get_top_up(conn, business_id, customer_id, currency)
    conn.execute(statements.ENABLE_RULE, asdict(rule))
    return _rule(conn, business_id, rule.wallet_id)


# --- start ----------------------------------------------------------------------------------------


def start_top_ups(conn: Connection, page: int, at: datetime | None = None) -> list[ChargeId]:
    """Order a top-up for each wallet that wants one, up to `page`; return their charges.

    The charges are due after the commit. `at`: the moment for caps and waits, by default now.
    """
    now = at or conn.execute(statements.TRANSACTION_CLOCK).scalar_one()
    waiting = conn.execute(statements.WAITING_RULES, {"now": now, "page": page}).scalars().all()
    started = [_start(conn, wallet_id, now) for wallet_id in waiting]
    return [charge_id for charge_id in started if charge_id is not None]


def _start(conn: Connection, wallet_id: WalletId, now: datetime) -> ChargeId | None:
    """Start a top-up unless one is running; the unique index makes sure of that.

    After an error of one wallet its rule waits, and the others go on. A fault of the server ends
    the run, and no rule waits for it.
    """
    try:
        with conn.begin_nested():
            return _start_once(conn, wallet_id, now)
    except (*DATABASE_ERRORS, GullakError) as error:
        if is_server_fault(error):
            raise
        if not isinstance(cause_of(error), psycopg.errors.UniqueViolation):
            log.warning("top-up not started", wallet_id=wallet_id, exc_info=error)
            waits = {"wallet_id": wallet_id, "retry_at": now + FAULT_WAIT}
            conn.execute(statements.WAIT_UNTIL, waits)
        return None


def _start_once(conn: Connection, wallet_id: WalletId, now: datetime) -> ChargeId | None:
    """Check again under the rule's lock, and order as much as is needed and allowed."""
    values = {"wallet_id": wallet_id, "now": now}
    if conn.execute(statements.LOCK_RULE, values).one_or_none() is None:
        return None
    day, month = day_of(now), month_of(now)
    spans = {"day_from": day.start, "day_to": day.end}
    spans |= {"month_from": month.start, "month_to": month.end}
    rule = conn.execute(statements.STANDING, {**values, **spans}).one()
    if rule.is_running:
        return None
    if rule.spendable_minor > rule.threshold_minor:
        conn.execute(statements.NOT_LOW, values)
        return None
    package = get_package(conn, rule.business_id, rule.package_id)
    if package.archived_at is not None:
        _disable(conn, wallet_id, rule)
        return None
    order = order_for(
        rule.threshold_minor - rule.spendable_minor,
        price_minor=package.price_minor,
        credit_minor=package.credit_minor,
        day_left=rule.day_cap_minor - rule.day_minor,
        month_left=rule.month_cap_minor - rule.month_minor,
        room_minor=INT64_MAX - rule.debited_minor - max(0, rule.balance_minor),
    )
    if not order.packages:
        _wait(conn, wallet_id, rule, order, month.end if order.cap == "month" else day.end)
        return None
    terms = replace(
        terms_of(package),
        price_minor=package.price_minor * order.packages,
        credit_minor=package.credit_minor * order.packages,
    )
    return _order(conn, rule, terms)


def _order(conn: Connection, rule: Row[Any], terms: Terms) -> ChargeId:
    purchase = place(conn, rule.business_id, rule.customer_id, terms, origin="top_up")
    charge = NewCharge(
        business_id=rule.business_id,
        account_id=rule.account_id,
        customer_id=rule.customer_id,
        amount_minor=terms.price_minor,
        currency=rule.currency,
        purchase_id=purchase.purchase_id,
        payment_method=rule.payment_method,
    )
    return store_charge(conn, charge)


def _wait(
    conn: Connection, wallet_id: WalletId, rule: Row[Any], order: Order, until: datetime
) -> None:
    """Charge nothing before the next day or month, and announce that once."""
    conn.execute(statements.WAIT_UNTIL, {"wallet_id": wallet_id, "retry_at": until})
    reason = f"{order.cap}_cap_reached"
    tell_of_failure(conn, rule, rule, reason=reason, retry_at=until, is_disabled=False)


def _disable(conn: Connection, wallet_id: WalletId, rule: Row[Any]) -> None:
    """Disable a rule whose package is off sale."""
    reason = "package_archived"
    conn.execute(statements.DISABLE_RULE, {"wallet_id": wallet_id, "reason": reason})
    tell_of_failure(conn, rule, rule, reason=reason, retry_at=None, is_disabled=True)
