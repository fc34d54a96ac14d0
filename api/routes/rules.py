"""Low-credit rules: of one customer's wallet, or the business's default for a currency."""

from typing import Annotated, Final

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from api.auth import Reader, Writer
from api.context import REPEATABLE, Scoped
from api.paging import Page, Paged
from metering.errors import UnsupportedCurrencyError
from metering.fields import CurrencyCode, Filled64, SignedMinor
from metering.ids import Currency, CustomerId, RuleId, WalletId
from metering.low_credit.rules import Rule, delete_rule, get_rule, page_of_rules, set_rule

router: Final = APIRouter(prefix="/low-credit-rules", tags=["low-credit rules"])

RulePath = Annotated[RuleId, Path(min_length=1, max_length=64)]


class NewRule(BaseModel):
    """What a rule is made of. Amounts in minor units; without a customer it is the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: CurrencyCode
    threshold: SignedMinor
    recover_at: SignedMinor | None = None
    customer_id: Filled64 | None = None


class RuleOut(BaseModel):
    """A rule: low at or below `threshold`, recovered from `recover_at` on."""

    id: RuleId
    wallet_id: WalletId | None
    customer_id: CustomerId | None
    currency: Currency
    threshold: int
    recover_at: int


def _out(rule: Rule) -> RuleOut:
    return RuleOut(
        id=rule.rule_id,
        wallet_id=rule.wallet_id,
        customer_id=rule.customer_id,
        currency=rule.currency,
        threshold=rule.threshold_minor,
        recover_at=rule.recover_at_minor,
    )


@router.post("", status_code=201, dependencies=REPEATABLE)
def make_rule(caller: Writer, scope: Scoped, new: NewRule) -> RuleOut:
    """Set a rule; the same threshold again changes its band."""
    if new.currency not in scope.currencies:
        raise UnsupportedCurrencyError(new.currency, scope.currencies)

    def work(conn: Connection) -> Rule:
        rule_id = set_rule(
            conn,
            caller.business_id,
            Currency(new.currency),
            new.threshold,
            customer_id=None if new.customer_id is None else CustomerId(new.customer_id),
            recover_at_minor=new.recover_at,
        )
        return get_rule(conn, caller.business_id, rule_id)

    return _out(scope.run(caller.business_id, work))


@router.get("")
def list_rules(caller: Reader, scope: Scoped, paged: Paged) -> Page[RuleOut]:
    """List rules, newest first."""
    found = scope.run(
        caller.business_id,
        lambda conn: page_of_rules(
            conn,
            caller.business_id,
            page=paged.size,
            offset=paged.offset,
            after=paged.after_as(RuleId),
        ),
    )
    return Page(items=[_out(rule) for rule in found])


@router.get("/{rule_id}")
def show_rule(caller: Reader, scope: Scoped, rule_id: RulePath) -> RuleOut:
    """Return one rule."""
    return _out(
        scope.run(caller.business_id, lambda conn: get_rule(conn, caller.business_id, rule_id))
    )


@router.delete("/{rule_id}", status_code=204, response_class=Response)
def take_rule_away(caller: Writer, scope: Scoped, rule_id: RulePath) -> None:
    """Take a rule away, with its alerts' states."""
    scope.run(caller.business_id, lambda conn: delete_rule(conn, caller.business_id, rule_id))
