"""The `data` of each webhook type, for the OpenAPI description.

The tests validate every webhook that they produce against these models.
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
    """A balance fell to the threshold of a rule, or rose above its recovery line again.

    Amounts are in minor units. `available_balance` is the credit that can be spent. It does not
    include frozen or expired credit, nor the overdraft limit. `sequence` counts the alerts of a
    wallet from 1, without gaps.
    """

    payload_type: Literal["CreditBalanceLow", "CreditBalanceRecovered"]
    customer_id: CustomerId
    wallet: Annotated[Currency, Field(description="The currency of the wallet, as in `currency`.")]
    currency: Currency
    available_balance: int
    threshold_amount: int
    recover_at_amount: int
    crossed_at: datetime
    sequence: int


class EntryNotice(BaseModel):
    """An entry of a wallet that is not for usage, as in the list of entries."""

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
    version: Annotated[int, Field(description="The order of the entries of a wallet: 1, 2, 3 …")]
    created_at: datetime


class LotNotice(BaseModel):
    """A lot that will expire soon. `remaining` is the credit left in it."""

    payload_type: Literal["CreditLot"]
    lot_id: LotId
    customer_id: CustomerId
    currency: Currency
    source: Source
    amount: int
    remaining: int
    expires_at: datetime
    days_ahead: Annotated[int, Field(description="The configured notice period, in days.")]


class PurchaseNotice(BaseModel):
    """The new state of a purchase. Amounts are in minor units of its currency."""

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
    shortfall: Annotated[int, Field(description="Reversed, but already spent, and not a debt.")]
    provider: str | None
    payment_id: str | None
    ledger_entry_id: EntryId | None
    failure: Annotated[str | None, Field(description="Why it failed.")]


class CheckoutNotice(BaseModel):
    """A checkout has ended. `credit_part` + `payment_part` = `amount`, in minor units."""

    payload_type: Literal["Checkout"]
    checkout_id: CheckoutId
    customer_id: CustomerId
    currency: Currency
    status: CheckoutStatus
    amount: int
    credit_part: int
    payment_part: int
    payment_id: str | None
    ledger_entry_id: Annotated[EntryId | None, Field(description="Reserved the credit part.")]
    release_entry_id: Annotated[EntryId | None, Field(description="Returned the credit part.")]
    failure: str | None


class TopUpNotice(BaseModel):
    """A top-up has failed. `retry_at` is null if the rule does not try again."""

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
    """The first event of a kind that has no meter or no price.

    The business's `on_unmetered` decides: the event is refused, or stored at no cost.
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
    """A test of an endpoint."""

    payload_type: Literal["Test"]


SHAPES: Final[dict[WebhookType, tuple[type[BaseModel], str]]] = {
    "credit.balance_low": (BalanceNotice, "A balance is at or below a threshold."),
    "credit.balance_recovered": (BalanceNotice, "A balance is above its recovery line again."),
    "credit.added": (EntryNotice, "Credit was added to a wallet."),
    "credit.deducted": (EntryNotice, "Credit was taken from a wallet, not for usage."),
    "credit.expiring": (LotNotice, "Credit will expire soon."),
    "credit.expired": (EntryNotice, "Credit has expired."),
    "purchase.succeeded": (PurchaseNotice, "A purchase was paid and credited."),
    "purchase.failed": (
        PurchaseNotice,
        "A purchase failed: its payment was declined or its page expired.",
    ),
    "purchase.reversed": (PurchaseNotice, "A refund or dispute has reversed a purchase."),
    "checkout.completed": (CheckoutNotice, "A checkout was paid, by credit and payment."),
    "checkout.failed": (CheckoutNotice, "A checkout has failed; its credit part was returned."),
    "checkout.expired": (
        CheckoutNotice,
        "A checkout has expired; its credit part was returned.",
    ),
    "topup.failed": (TopUpNotice, "A top-up could not be charged."),
    "usage.unpriced": (UnpricedUsageNotice, "Usage without a meter or price arrived."),
    "webhook.test": (TestNotice, "A test."),
}
