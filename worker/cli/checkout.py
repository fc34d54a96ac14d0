"""`gullak checkout`: a price that credit pays first, and a payment for the rest."""

from typing import Annotated, Final

from typer import Argument, Option

from metering.ids import BusinessId, CheckoutId
from metering.payment.charges.charge import run_charge
from metering.payment.checkouts.begin import NewCheckout, begin_checkout
from metering.payment.checkouts.checkout import Checkout, get_checkout, page_of_checkouts
from worker import charging
from worker.cli.command import Group, Options, Tenant
from worker.cli.options import CurrencyCode, Customer, Limit, ProviderAccount, ReturnUrl, minor
from worker.cli.page import columns, record, table
from worker.cli.target import Target

app = Group()

_CHECKOUT: Final = columns("""
    checkout_id, by credit# = $credit_minor, to pay# = $payment_minor, status, failure~,
    created_at, pay at = payment_url
""")
_NEW: Final = Options(
    currency=CurrencyCode,
    amount=Annotated[int, minor("--amount", "The price.")],
    idempotency_key=Annotated[str, Option("--key", help="Idempotency key: once per business.")],
    account_id=ProviderAccount,
    payment_method=Annotated[
        str | None, Option(help="A saved one, charged at once. Default: a page of the provider.")
    ],
    return_url=ReturnUrl,
)


@app.add("create", record(_CHECKOUT))
def create(
    target: Target, business: BusinessId, customer: Customer, new: Annotated[NewCheckout, _NEW]
) -> Checkout:
    """Begin a checkout and ask for its payment; the same key again is the same checkout."""
    ttl_s = target.settings.checkout_ttl_s
    with target.transaction() as conn:
        begun = begin_checkout(conn, business, customer, new, ttl_s=ttl_s).checkout
    if begun.status == "pending" and begun.charge_id is not None:
        policy = charging.charge_policy_of(target.settings)
        run_charge(target.transaction, charging.open_gateway, begun.charge_id, policy)
    with target.transaction() as conn:
        return get_checkout(conn, business, begun.checkout_id)


@app.add("show", record(_CHECKOUT))
def show(
    tenant: Tenant,
    checkout: Annotated[CheckoutId, Argument(help="Checkout id.", metavar="CHECKOUT")],
) -> Checkout:
    """Show a checkout."""
    return tenant.run(get_checkout, checkout)


@app.add("list", table(_CHECKOUT))
def list_all(tenant: Tenant, customer: Customer, limit: Limit = 50) -> list[Checkout]:
    """List the checkouts of a customer, newest first."""
    return tenant.run(page_of_checkouts, customer, page=limit)
