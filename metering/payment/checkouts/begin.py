"""Begin a checkout: reserve the credit part, store the charge of the rest, once per key."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlalchemy import Connection

from metering import locks
from metering.fields import PAGE_URL, CurrencyName, Filled64, Filled255, PositiveMinor
from metering.idempotency import digest_of, first_answer
from metering.ids import BusinessId, CheckoutId, CustomerId, EntryId, WalletId, new_id
from metering.ledger.entry import Posting
from metering.ledger.post import open_book, post
from metering.ledger.wallets import wallet_of
from metering.payment.charges.store import NewCharge, account_to_charge, store_charge
from metering.payment.checkouts import statements
from metering.payment.checkouts.checkout import Checkout, get_checkout, tell_of_checkout

ReturnUrl = Annotated[str, StringConstraints(strict=True, max_length=2048, pattern=PAGE_URL)]


class NewCheckout(BaseModel):
    """An amount in minor units of `currency`: credit pays first, a payment the rest.

    `account_id`: the provider account, needed only if several are in use. `payment_method`: a saved
    one, which is charged at once; without it the customer pays on a hosted page and comes back to
    `return_url`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    amount: PositiveMinor
    currency: CurrencyName
    idempotency_key: Filled255
    return_url: ReturnUrl | None = None
    account_id: Filled64 | None = None
    payment_method: Filled255 | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """The checkout of a request; `replayed`: an earlier request made it."""

    checkout: Checkout
    replayed: bool


def begin_checkout(
    conn: Connection,
    business_id: BusinessId,
    customer_id: CustomerId,
    new: NewCheckout,
    *,
    ttl_s: int,
) -> Begun:
    """Reserve the credit part and store the charge of the rest, once per idempotency key.

    `run_charge`, or the sweep, then requests the payment. After `ttl_s` seconds the checkout fails.

    Raises: NotFoundError or UnsupportedCurrencyError if there is no such wallet or provider
    account. InvalidInputError if a payment is needed and no account can be chosen.
    IdempotencyConflictError if the key was used with other content.
    """
    wallet = wallet_of(conn, business_id, customer_id, new.currency)
    digest = digest_of({"customer_id": customer_id, **new.model_dump(exclude_none=True)})
    earlier = first_answer(
        conn,
        business_id,
        new.idempotency_key,
        digest,
        lock=locks.CHECKOUT_KEY,
        find=statements.CHECKOUT_BY_KEY,
    )
    if earlier is not None:
        return Begun(get_checkout(conn, business_id, earlier.checkout_id), replayed=True)
    checkout_id = CheckoutId(new_id("chk"))
    credit_minor = min(new.amount, open_book(conn, wallet.wallet_id).spendable_minor)
    payment_minor = new.amount - credit_minor
    values = {
        "checkout_id": checkout_id,
        "business_id": business_id,
        "customer_id": customer_id,
        "currency": wallet.currency,
        "amount_minor": new.amount,
        "credit_minor": credit_minor,
        "payment_minor": payment_minor,
        "status": "pending" if payment_minor else "completed",
        "idempotency_key": new.idempotency_key,
        "request_digest": digest,
        "debit_entry_id": _reserve(conn, wallet.wallet_id, checkout_id, credit_minor),
        "ttl_s": ttl_s,
    }
    conn.execute(statements.INSERT_CHECKOUT, values)
    if payment_minor:
        charge = NewCharge(
            business_id=business_id,
            account_id=account_to_charge(conn, business_id, new.account_id),
            customer_id=customer_id,
            amount_minor=payment_minor,
            currency=wallet.currency,
            checkout_id=checkout_id,
            payment_method=new.payment_method,
            return_url=new.return_url,
        )
        store_charge(conn, charge)
    checkout = get_checkout(conn, business_id, checkout_id)
    if not payment_minor:
        tell_of_checkout(conn, checkout)
    return Begun(checkout, replayed=False)


def _reserve(
    conn: Connection, wallet_id: WalletId, checkout_id: CheckoutId, amount_minor: int
) -> EntryId | None:
    """Debit the credit part from the wallet, which is locked; return the entry."""
    if not amount_minor:
        return None
    posting = Posting(
        wallet_id=wallet_id,
        kind="checkout",
        is_credit=False,
        amount_minor=amount_minor,
        reason=f"checkout {checkout_id}",
        reference=checkout_id,
    )
    (entry,) = post(conn, [posting])
    return entry.entry_id
