"""Checkouts: a price that credit pays first, and a payment for the rest."""

from datetime import datetime
from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel

from api.auth import Reader, Writer
from api.context import ApiScope, Scoped
from api.paging import Page, Paged
from api.routes.wallets import CustomerPath
from metering.ids import (
    AccountId,
    BusinessId,
    ChargeId,
    CheckoutId,
    Currency,
    CustomerId,
    EntryId,
)
from metering.payment.charges.charge import run_charge
from metering.payment.checkouts.begin import NewCheckout, begin_checkout
from metering.payment.checkouts.checkout import (
    Checkout,
    CheckoutStatus,
    get_checkout,
    page_of_checkouts,
)
from worker.charging import charge_policy_of

router: Final = APIRouter(tags=["checkouts"])

CheckoutPath = Annotated[CheckoutId, Path(min_length=1, max_length=64)]


class CheckoutOut(BaseModel):
    """A checkout; amounts in minor units, `credit_part` + `payment_part` = `amount`.

    While it is pending the credit part is reserved; if it fails it goes back, and the two entries
    say so. `payment_url`: where the customer pays. `failure`: why it failed, or what about its
    payment has to be looked at.
    """

    id: CheckoutId
    business_id: BusinessId
    customer_id: CustomerId
    currency: Currency
    amount: int
    credit_part: int
    payment_part: int
    status: CheckoutStatus
    payment_url: str | None
    failure: str | None
    account_id: AccountId | None
    payment_id: str | None
    idempotency_key: str
    ledger_entry_id: EntryId | None
    release_entry_id: EntryId | None
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None


def _out(checkout: Checkout) -> CheckoutOut:
    return CheckoutOut(
        id=checkout.checkout_id,
        business_id=checkout.business_id,
        customer_id=checkout.customer_id,
        currency=checkout.currency,
        amount=checkout.amount_minor,
        credit_part=checkout.credit_minor,
        payment_part=checkout.payment_minor,
        status=checkout.status,
        payment_url=checkout.payment_url,
        failure=checkout.failure,
        account_id=checkout.account_id,
        payment_id=checkout.payment_id,
        idempotency_key=checkout.idempotency_key,
        ledger_entry_id=checkout.debit_entry_id,
        release_entry_id=checkout.release_entry_id,
        created_at=checkout.created_at,
        expires_at=checkout.expires_at,
        ended_at=checkout.ended_at,
    )


@router.post("/customers/{customer_id}/checkouts")
def make_checkout(
    *,
    caller: Writer,
    scope: Scoped,
    customer_id: CustomerPath,
    new: NewCheckout,
    request: Request,
    response: Response,
) -> CheckoutOut:
    """Begin a checkout, once per idempotency key: reserve its credit part, ask for the payment.

    Nothing left to pay: it is complete at once. A provider that does not answer leaves it pending,
    and it is asked again. The same key with the same content answers with the checkout as it is
    now, and the header `Idempotent-Replayed: true`; with other content it is a conflict.
    """
    request.state.repeatable = True
    ttl_s = scope.settings.checkout_ttl_s
    begun = scope.run(
        caller.business_id,
        lambda conn: begin_checkout(conn, caller.business_id, customer_id, new, ttl_s=ttl_s),
    )
    if begun.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    checkout = begun.checkout
    if checkout.charge_id is None or checkout.status != "pending":
        return _out(checkout)
    ask_for(scope, caller.business_id, checkout.charge_id)
    return _show(scope, caller.business_id, checkout.checkout_id)


def ask_for(scope: ApiScope, business_id: BusinessId, charge_id: ChargeId) -> None:
    """Ask for the payment, unless many requests wait for providers: the sweep does it too."""
    if not scope.charging.acquire(blocking=False):
        return
    try:
        transaction = partial(scope.sessions.tenant, business_id)
        run_charge(transaction, scope.gateways, charge_id, charge_policy_of(scope.settings))
    finally:
        scope.charging.release()


def _show(scope: ApiScope, business_id: BusinessId, checkout_id: CheckoutId) -> CheckoutOut:
    return _out(scope.run(business_id, lambda conn: get_checkout(conn, business_id, checkout_id)))


@router.get("/customers/{customer_id}/checkouts")
def checkouts_page(
    caller: Reader, scope: Scoped, customer_id: CustomerPath, paged: Paged
) -> Page[CheckoutOut]:
    """List the checkouts of a customer, newest first."""
    found = scope.run(
        caller.business_id,
        lambda conn: page_of_checkouts(
            conn,
            caller.business_id,
            customer_id,
            page=paged.size,
            offset=paged.offset,
            after=paged.after_as(CheckoutId),
        ),
    )
    return Page(items=[_out(checkout) for checkout in found])


@router.get("/checkouts/{checkout_id}")
def show_checkout(caller: Reader, scope: Scoped, checkout_id: CheckoutPath) -> CheckoutOut:
    """Return one checkout."""
    return _show(scope, caller.business_id, checkout_id)
