"""Open a page of a provider for a purchase, where its customer pays for it.

One page for a purchase: asked for again, it is the same. A card that is declined there is not its
end, because the customer can take another one; the provider's word on the page is.
"""

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from metering.errors import FieldProblem, InvalidInputError
from metering.fields import Filled64
from metering.ids import BusinessId, ChargeId, PurchaseId
from metering.payment.charges import statements
from metering.payment.charges.store import NewCharge, account_to_charge, charge_of, store_charge
from metering.payment.checkouts.begin import ReturnUrl
from metering.purchase import statements as of_purchases
from metering.purchase.purchases import get_purchase


class NewPage(BaseModel):
    """Where a purchase is to be paid.

    `account_id`: through which provider account, needed only where several are in use.
    `return_url`: where the customer comes back to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    account_id: Filled64 | None = None
    return_url: ReturnUrl | None = None


def open_page(
    conn: Connection, business_id: BusinessId, purchase_id: PurchaseId, new: NewPage
) -> ChargeId:
    """Store the charge of a purchase that is to be paid on a page; return it, the same one again.

    It has to be asked for with `run_charge`; the sweep does it too.

    Raises:
        NotFoundError: the business has no such purchase, or no such provider account.
        InvalidInputError: the purchase is paid or cannot be paid on a page any more, or no account
            can be chosen.

    """
    purchase = get_purchase(conn, business_id, purchase_id)
    # One at a time: of two that open a page the second finds the first one's charge. It is not
    # locked, because a charge comes before its purchase in the order of locks.
    conn.execute(of_purchases.LOCK, {"purchase_id": purchase_id})
    row = conn.execute(statements.CHARGE_OF, {"purchase_id": purchase_id}).one_or_none()
    charge = None if row is None else charge_of(row)
    if charge is not None and charge.is_open and charge.payment_method is None:
        return charge.charge_id
    if charge is not None or purchase.entry_id is not None:
        reason = f"is {purchase.status} and has no page: order anew"
        raise InvalidInputError(FieldProblem("purchase", reason))
    return store_charge(
        conn,
        NewCharge(
            business_id=business_id,
            account_id=account_to_charge(conn, business_id, new.account_id),
            customer_id=purchase.customer_id,
            amount_minor=purchase.price_minor,
            currency=purchase.currency,
            purchase_id=purchase_id,
            return_url=new.return_url,
        ),
    )
