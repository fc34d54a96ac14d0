"""Begin a checkout: reserve what credit pays, store the charge of the rest, once per key."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated

import orjson
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlalchemy import Connection

from metering.errors import IdempotencyConflictError
from metering.fields import CurrencyName, Filled64, Filled255, PositiveMinor
from metering.ids import BusinessId, CheckoutId, CustomerId, EntryId, WalletId, new_id
from metering.ledger.entry import Posting, Wallet
from metering.ledger.post import open_book, post
from metering.ledger.wallets import wallet_of
from metering.payment.charges import statements
from metering.payment.charges.store import NewCharge, account_to_charge, store_charge
from metering.payment.checkouts.checkout import Checkout, get_checkout, tell_of_checkout

ReturnUrl = Annotated[
    str, StringConstraints(strict=True, max_length=2048, pattern=r"^https?://[!-~]+$")
]


class NewCheckout(BaseModel):
    """What is to be paid, in minor units of `currency`: by credit first, the rest by a payment.

    `account_id`: through which provider account, needed only where several are in use.
    `payment_method`: a saved one that is charged at once; left out, the customer pays on a page of
    the provider and comes back to `return_url`.
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
    """The checkout that the request made; `replayed`: it was made by an earlier one."""

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

    What is left to be paid has to be asked for with `run_charge`; the sweep does it too. After
    `ttl_s` seconds it is given up.

    Raises:
        NotFoundError, UnsupportedCurrencyError: there is no such wallet or provider account.
        InvalidInputError: a payment is needed, and no account can be chosen for it.
        IdempotencyConflictError: the key was used with other content.

    """
    wallet = wallet_of(conn, business_id, customer_id, new.currency)
    digest = _digest(customer_id, new)
    earlier = _begun_before(conn, business_id, new.idempotency_key, digest)
    if earlier is not None:
        return Begun(get_checkout(conn, business_id, earlier), replayed=True)
    checkout_id = CheckoutId(new_id("chk"))
    credit_minor = min(new.amount, open_book(conn, wallet.wallet_id).spendable_minor)
    debit_id = _reserve(conn, wallet.wallet_id, checkout_id, credit_minor)
    payment_minor = new.amount - credit_minor
    conn.execute(
        statements.INSERT_CHECKOUT,
        {
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
            "debit_entry_id": debit_id,
            "ttl_s": ttl_s,
        },
    )
    if payment_minor:
        _store_charge(conn, wallet, checkout_id, payment_minor, new)
    checkout = get_checkout(conn, business_id, checkout_id)
    if not payment_minor:
        tell_of_checkout(conn, checkout)
    return Begun(checkout, replayed=False)


def _digest(customer_id: CustomerId, new: NewCheckout) -> bytes:
    """Return what tells a repetition from a conflict: everything that was asked for."""
    asked = {"customer_id": customer_id, **new.model_dump(exclude_none=True)}
    return blake2b(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def _begun_before(
    conn: Connection, business_id: BusinessId, key: str, digest: bytes
) -> CheckoutId | None:
    values = {"business_id": business_id, "idempotency_key": key}
    conn.execute(statements.LOCK_KEY, values)
    row = conn.execute(statements.CHECKOUT_BY_KEY, values).one_or_none()
    if row is None:
        return None
    if bytes(row.request_digest) != digest:
        raise IdempotencyConflictError(key)
    return CheckoutId(row.checkout_id)


def _reserve(
    conn: Connection, wallet_id: WalletId, checkout_id: CheckoutId, amount_minor: int
) -> EntryId | None:
    """Take the credit part out of the wallet, which is locked; return the debit."""
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


def _store_charge(
    conn: Connection, wallet: Wallet, checkout_id: CheckoutId, amount_minor: int, new: NewCheckout
) -> None:
    charge = NewCharge(
        business_id=wallet.business_id,
        account_id=account_to_charge(conn, wallet.business_id, new.account_id),
        customer_id=wallet.customer_id,
        amount_minor=amount_minor,
        currency=wallet.currency,
        checkout_id=checkout_id,
        payment_method=new.payment_method,
        return_url=new.return_url,
    )
    store_charge(conn, charge)
