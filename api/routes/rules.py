"""Low-credit rules: of one customer's wallet, or the business's default for a currency."""

from typing import Final

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from api.idempotency import REPEATABLE
from api.paging import Page, Paged
from api.parameters import RulePath
from api.tenant import Reader, Writer
from api.views import View
from metering.errors import UnsupportedCurrencyError
from metering.fields import CurrencyCode, Filled64, SignedMinor
from metering.ids import BusinessId, Currency, CustomerId, RuleId, WalletId
from metering.low_credit.rules import Rule, delete_rule, get_rule, page_of_rules, set_rule

router: Final = APIRouter(prefix="/low-credit-rules", tags=["low-credit rules"])


class NewRule(BaseModel):
    """A new rule. Amounts in minor units; without a customer it is the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: CurrencyCode
    threshold: SignedMinor
    recover_at: SignedMinor | None = None
    customer_id: Filled64 | None = None


class RuleOut(View):
    """A rule: credit is low at or below `threshold`, and has recovered at `recover_at` or above."""

    id: RuleId = Field(validation_alias="rule_id")
    wallet_id: WalletId | None
    customer_id: CustomerId | None
    currency: Currency
    threshold: int = Field(validation_alias="threshold_minor")
    recover_at: int = Field(validation_alias="recover_at_minor")


@router.post("", status_code=201, response_model=RuleOut, dependencies=REPEATABLE)
def make_rule(tenant: Writer, new: NewRule) -> Rule:
    """Create a rule. If one with this threshold exists, its `recover_at` is changed."""
    if new.currency not in tenant.context.currencies:
        raise UnsupportedCurrencyError(new.currency, tenant.context.currencies)

    def work(conn: Connection, business_id: BusinessId) -> Rule:
        rule_id = set_rule(
            conn,
            business_id,
            Currency(new.currency),
            new.threshold,
            customer_id=None if new.customer_id is None else CustomerId(new.customer_id),
            recover_at_minor=new.recover_at,
        )
        return get_rule(conn, business_id, rule_id)

    return tenant.run(work)


@router.get("", response_model=Page[RuleOut])
def list_rules(tenant: Reader, paged: Paged) -> Page[Rule]:
    """List rules, newest first."""
    return Page(items=tenant.run(page_of_rules, **paged.rows(RuleId)))


@router.get("/{rule_id}", response_model=RuleOut)
def show_rule(tenant: Reader, rule_id: RulePath) -> Rule:
    """Return one rule."""
    return tenant.run(get_rule, rule_id)


@router.delete("/{rule_id}", status_code=204, response_class=Response)
def take_rule_away(tenant: Writer, rule_id: RulePath) -> None:
    """Delete a rule and the state of its alerts."""
    tenant.run(delete_rule, rule_id)
