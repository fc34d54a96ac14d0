"""What a business is told by webhook: the shape of `data` for each type, for the description.

A test holds every notice that any other test makes against these.
"""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from metering.ids import (
    CheckoutId,
    Currency,
    CustomerId,
    EntryId,
    LotId,
    PackageId,
    PurchaseId,
)
from metering.ledger.entry import EventType, Kind, Source
from metering.payment.checkouts.checkout import CheckoutStatus
from metering.purchase.purchases import Origin
from metering.purchase.reversal_target import PurchaseStatus
from metering.webhook.outbox import WebhookType


class BalanceNotice(BaseModel):
    """A balance has crossed the threshold of a rule, or is above its recovery line again.

    Amounts in minor units. `available_balance`: the credit that can be spent, without what is
    frozen or has expired, and without how far the wallet may be overdrawn. `sequence` counts the
    alerts of a wallet from 1, without gaps.
    """

    payload_type: Literal["CreditBalanceLow", "CreditBalanceRecovered"]
    customer_id: CustomerId
    wallet: Annotated[Currency, Field(description="Its currency; `currency` says the same.")]
    currency: Currency
    available_balance: int
    threshold_amount: int
    recover_at_amount: int
    crossed_at: datetime
    sequence: int


class EntryNotice(BaseModel):
    """An entry of a wallet other than usage, as the list of entries shows it."""

    payload_type: Literal["CreditLedgerEntry"]
    id: EntryId
    customer_id: CustomerId
    currency: Currency
    amount: int
    is_credit: bool
    event_type: EventType
    kind: Kind
    before_balance: int
    after_balance: int
    reason: str | None
    reference_object_id: str | None
    version: Annotated[int, Field(description="1, 2, 3 … per wallet: the order of its entries.")]
    created_at: datetime


class LotNotice(BaseModel):
    """Credit that will soon expire: what is left of a lot."""

    payload_type: Literal["CreditLot"]
    lot_id: LotId
    customer_id: CustomerId
    currency: Currency
    source: Source
    amount: int
    remaining: int
    expires_at: datetime
    days_ahead: Annotated[int, Field(description="Which of the configured notices this is.")]


class PurchaseNotice(BaseModel):
    """What has become of a purchase. Amounts in minor units of its currency."""

    payload_type: Literal["Purchase"]
    purchase_id: PurchaseId
    customer_id: CustomerId
    currency: Currency
    order_id: str
    origin: Origin
    package_id: PackageId | None
    status: PurchaseStatus
    price: int
    credit: int
    paid: int | None
    reversed: int
    shortfall: Annotated[int, Field(description="Called back, but spent, and owed by nobody.")]
    provider: str | None
    payment_id: str | None
    ledger_entry_id: EntryId | None
    failure: Annotated[str | None, Field(description="Why it failed.")]


class CheckoutNotice(BaseModel):
    """A checkout has come to its end. `credit_part` + `payment_part` = `amount`, in minor units."""

    payload_type: Literal["Checkout"]
    checkout_id: CheckoutId
    customer_id: CustomerId
    currency: Currency
    status: CheckoutStatus
    amount: int
    credit_part: int
    payment_part: int
    payment_id: str | None
    ledger_entry_id: Annotated[EntryId | None, Field(description="What reserved the credit part.")]
    release_entry_id: Annotated[EntryId | None, Field(description="What gave it back.")]
    failure: str | None


class TopUpNotice(BaseModel):
    """A top-up that failed. `retry_at`: when the rule tries again, if it does."""

    payload_type: Literal["TopUp"]
    customer_id: CustomerId
    wallet: Currency
    currency: Currency
    threshold_amount: int
    reason: str
    declines: int
    declines_max: int
    is_disabled: bool
    retry_at: datetime | None
    purchase_id: PurchaseId | None
    amount: int | None
    failure: str | None


class UnpricedUsageNotice(BaseModel):
    """The first usage of a kind that nothing prices, and an event of it.

    It waits as a refused event, or was kept without a charge: the business's `on_unmetered`.
    """

    payload_type: Literal["UnpricedUsage"]
    reason: Literal["unmetered", "no_price"]
    detail: str
    outcome: Literal["refused", "kept_free"]
    event_name: str
    meter_id: Annotated[str | None, Field(description="The meter without a price.")]
    event_id: str
    customer_id: str
    timestamp: datetime


class TestNotice(BaseModel):
    """Nothing has happened: somebody tries whether an endpoint hears."""

    payload_type: Literal["Test"]


SHAPES: Final[dict[WebhookType, tuple[type[BaseModel], str]]] = {
    "credit.balance_low": (BalanceNotice, "A balance is at or below a threshold."),
    "credit.balance_recovered": (BalanceNotice, "A balance is above its recovery line again."),
    "credit.added": (EntryNotice, "Credit was added to a wallet."),
    "credit.deducted": (EntryNotice, "Credit was taken from a wallet, not for usage."),
    "credit.expiring": (LotNotice, "Credit will expire soon."),
    "credit.expired": (EntryNotice, "Credit has expired."),
    "purchase.succeeded": (PurchaseNotice, "A purchase was paid and credited."),
    "purchase.failed": (PurchaseNotice, "A purchase was not paid: declined, or its page is over."),
    "purchase.reversed": (PurchaseNotice, "A refund or dispute has called back a purchase."),
    "checkout.completed": (CheckoutNotice, "A checkout is paid, by credit and payment."),
    "checkout.failed": (CheckoutNotice, "A checkout has failed; its credit part is given back."),
    "checkout.expired": (CheckoutNotice, "Nobody paid in time; the credit part is given back."),
    "topup.failed": (TopUpNotice, "A top-up could not be charged."),
    "usage.unpriced": (UnpricedUsageNotice, "Usage that no meter or price covers has come."),
    "webhook.test": (TestNotice, "A test."),
}
