"""Open a hosted page where the customer pays for a purchase.

A purchase has one page: a second request returns the same one. A declined card does not end it,
because the customer can take another card there; only the provider ends it.
"""

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from metering.db import row
from metering.errors import FieldProblem, InvalidInputError
from metering.fields import Filled64
from metering.ids import BusinessId, ChargeId, PurchaseId
from metering.payment.charges import statements
from metering.payment.charges.store import Charge, NewCharge, account_to_charge, store_charge
from metering.payment.checkouts.begin import ReturnUrl
from metering.purchase.purchases import get_purchase, lock_purchase


class NewPage(BaseModel):
    """How a purchase is to be paid.

    `account_id`: the provider account, needed only if several are in use. `return_url`: where the
    customer comes back to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    account_id: Filled64 | None = None
    return_url: ReturnUrl | None = None


def open_page(
    conn: Connection, business_id: BusinessId, purchase_id: PurchaseId, new: NewPage
) -> ChargeId:
    """Store the charge of a purchase that is paid on a page; the same charge for every request.

    `run_charge`, or the sweep, then opens the page.

    Raises: NotFoundError if the business has no such purchase or provider account.
    InvalidInputError if the purchase cannot be paid on a page, or no account can be chosen.
    """
    purchase = get_purchase(conn, business_id, purchase_id)
    # Of two requests at once, the second finds the first one's charge. The charge is not locked,
    # because the order of locks has a charge before its purchase.
    lock_purchase(conn, purchase_id)
    found = conn.execute(statements.CHARGE_OF, {"purchase_id": purchase_id}).one_or_none()
    charge = None if found is None else row(Charge, found)
    if charge is not None and charge.is_open and charge.payment_method is None:
        return charge.charge_id
    if charge is not None or purchase.entry_id is not None:
        reason = f"is {purchase.status} and has no page: make a new order"
        raise InvalidInputError(FieldProblem("purchase", reason))
    new_charge = NewCharge(
        business_id=business_id,
        account_id=account_to_charge(conn, business_id, new.account_id),
        customer_id=purchase.customer_id,
        amount_minor=purchase.price_minor,
        currency=purchase.currency,
        purchase_id=purchase_id,
        return_url=new.return_url,
    )
    return store_charge(conn, new_charge)
