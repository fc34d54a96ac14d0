"""Checkouts: a price that credit pays first, and a payment for the rest."""

from datetime import datetime
from typing import Final

from fastapi import APIRouter
from pydantic import Field

from api.charging import ask_for_payment
from api.idempotency import REPEATABLE, Idempotent
from api.paging import Page, Paged
from api.parameters import CheckoutPath, CustomerPath
from api.tenant import Reader, Writer
from api.views import View
from metering.ids import AccountId, BusinessId, CheckoutId, Currency, CustomerId, EntryId
from metering.payment.checkouts.begin import NewCheckout, begin_checkout
from metering.payment.checkouts.checkout import (
    Checkout,
    CheckoutStatus,
    get_checkout,
    page_of_checkouts,
)

router: Final = APIRouter(tags=["checkouts"])


class CheckoutOut(View):
    """A checkout; amounts in minor units, `credit_part` + `payment_part` = `amount`.

    The credit part is reserved while the checkout is pending, and given back if it fails: an entry
    each. `payment_url`: where the customer pays. `failure`: why it failed, or what a person has to
    look into about its payment.
    """

    id: CheckoutId = Field(validation_alias="checkout_id")
    business_id: BusinessId
    customer_id: CustomerId
    currency: Currency
    amount: int = Field(validation_alias="amount_minor")
    credit_part: int = Field(validation_alias="credit_minor")
    payment_part: int = Field(validation_alias="payment_minor")
    status: CheckoutStatus
    payment_url: str | None
    failure: str | None
    account_id: AccountId | None
    payment_id: str | None
    idempotency_key: str
    ledger_entry_id: EntryId | None = Field(validation_alias="debit_entry_id")
    release_entry_id: EntryId | None
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None


@router.post(
    "/customers/{customer_id}/checkouts", response_model=CheckoutOut, dependencies=REPEATABLE
)
def make_checkout(
    tenant: Writer, customer_id: CustomerPath, new: NewCheckout, idempotency: Idempotent
) -> Checkout:
    """Start a checkout, once per idempotency key: reserve its credit part, ask for the payment.

    If credit pays it all, the checkout is complete at once. If the provider does not answer, the
    checkout stays pending and the provider is asked again. The same key with the same content
    returns the checkout as it is now, with the header `Idempotent-Replayed: true`; with other
    content it is a conflict.
    """
    ttl_s = tenant.context.settings.checkout_ttl_s
    begun = tenant.run(begin_checkout, customer_id, new, ttl_s=ttl_s)
    idempotency.note(replayed=begun.replayed)
    checkout = begun.checkout
    if checkout.charge_id is None or checkout.status != "pending":
        return checkout
    ask_for_payment(tenant, checkout.charge_id)
    return tenant.run(get_checkout, checkout.checkout_id)


@router.get("/customers/{customer_id}/checkouts", response_model=Page[CheckoutOut])
def checkouts_page(tenant: Reader, customer_id: CustomerPath, paged: Paged) -> Page[Checkout]:
    """List the checkouts of a customer, newest first."""
    return Page(items=tenant.run(page_of_checkouts, customer_id, **paged.rows(CheckoutId)))


@router.get("/checkouts/{checkout_id}", response_model=CheckoutOut)
def show_checkout(tenant: Reader, checkout_id: CheckoutPath) -> Checkout:
    """Return one checkout."""
    return tenant.run(get_checkout, checkout_id)
