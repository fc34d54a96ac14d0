"""Low-credit rules: a threshold, and the credit from which a wallet counts as recovered."""

from dataclasses import dataclass

from sqlalchemy import Connection

from metering.db import get_one, rows
from metering.errors import FieldProblem, InvalidInputError, NotFoundError
from metering.ids import BusinessId, Currency, CustomerId, RuleId, WalletId, new_id
from metering.low_credit import statements
from metering.money import INT64_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule. Without a wallet it is the default of the business for the currency."""

    rule_id: RuleId
    wallet_id: WalletId | None
    customer_id: CustomerId | None
    currency: Currency
    threshold_minor: int
    recover_at_minor: int


def set_rule(
    conn: Connection,
    business_id: BusinessId,
    currency: Currency,
    threshold_minor: int,
    *,
    customer_id: CustomerId | None = None,
    recover_at_minor: int | None = None,
) -> RuleId:
    """Set a rule for one customer's wallet, or the default; return its id.

    The band ends at `recover_at_minor`, by default the first amount above the threshold. The
    scheduled check applies a new rule to balances that are already low.

    Raises:
        InvalidInputError: the band is empty or out of range.
        NotFoundError: the customer has no wallet in the currency.

    """
    recover_at_minor = threshold_minor + 1 if recover_at_minor is None else recover_at_minor
    _check_band(threshold_minor, recover_at_minor)
    values: dict[str, object] = {
        "rule_id": new_id("rul"),
        "business_id": business_id,
        "currency": currency,
        "threshold_minor": threshold_minor,
        "recover_at_minor": recover_at_minor,
    }
    if customer_id is None:
        return RuleId(conn.execute(statements.SET_DEFAULT_RULE, values).scalar_one())
    values["wallet_id"] = _wallet(conn, business_id, customer_id, currency)
    return RuleId(conn.execute(statements.SET_WALLET_RULE, values).scalar_one())


def _check_band(threshold_minor: int, recover_at_minor: int) -> None:
    for field, value in (("threshold", threshold_minor), ("recover_at", recover_at_minor)):
        if not -INT64_MAX <= value <= INT64_MAX:
            raise InvalidInputError(FieldProblem(field, "must fit a 64-bit integer"))
    if recover_at_minor <= threshold_minor:
        raise InvalidInputError(FieldProblem("recover_at", "must be above the threshold"))


def _wallet(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId, currency: Currency
) -> WalletId:
    wallet_id = conn.execute(
        statements.WALLET,
        {"business_id": business_id, "customer_id": customer_id, "currency": currency},
    ).scalar_one_or_none()
    if wallet_id is None:
        raise NotFoundError(f"{currency} wallet of customer", customer_id)
    return WalletId(wallet_id)


def delete_rule(conn: Connection, business_id: BusinessId, rule_id: RuleId) -> None:
    """Delete a rule.

    Raises: NotFoundError.
    """
    gone = conn.execute(
        statements.DELETE_RULE, {"business_id": business_id, "rule_id": rule_id}
    ).rowcount
    if not gone:
        raise NotFoundError("low-credit rule", rule_id)


def list_rules(conn: Connection, business_id: BusinessId) -> list[Rule]:
    """Return the rules of a business, oldest first."""
    return rows(Rule, conn.execute(statements.RULES, {"business_id": business_id}))


def page_of_rules(
    conn: Connection,
    business_id: BusinessId,
    *,
    page: int,
    offset: int = 0,
    after: RuleId | None = None,
) -> list[Rule]:
    """Return up to `page` rules of a business, newest first, older than `after`."""
    values = {"business_id": business_id, "page": page, "offset": offset, "after": after}
    return rows(Rule, conn.execute(statements.RULE_PAGE, values))


def get_rule(conn: Connection, business_id: BusinessId, rule_id: RuleId) -> Rule:
    """Return a rule.

    Raises: NotFoundError.
    """
    found = conn.execute(statements.RULE, {"business_id": business_id, "rule_id": rule_id})
    return get_one(Rule, found, "low-credit rule", rule_id)
