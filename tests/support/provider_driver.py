"""Drives the path from a provider's webhook to credit, with one purchase and its payment."""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from sqlalchemy import Connection

from metering.ids import ProviderEventNumber, PurchaseId
from metering.payment.facts import PurchaseDetails, purchase_details
from metering.payment.inbox import (
    EventFilter,
    EventStatus,
    ProviderEvent,
    page_of_events,
    process,
    receive,
    verified,
)
from metering.payment.manual import (
    DisputeStatus,
    ShopDispute,
    ShopPayment,
    ShopRefund,
    record_payment,
    record_reversal,
)
from metering.payment.provider_account import (
    NewAccount,
    ProviderAccount,
    connect_account,
    webhook_source,
)
from metering.purchase.purchases import NewPurchase, Purchase, get_purchase, order_purchase
from support.providers import Delivery, Json, Vendor
from support.tenant import Shop
from worker.session import Sessions

_payments = count(1)


@dataclass
class ProviderDriver:
    """A provider account of a business, one purchase, and the events of its payment."""

    shop: Shop
    vendor: Vendor
    account: ProviderAccount
    purchase_id: PurchaseId
    payment_id: str = field(default_factory=lambda: f"pi_{next(_payments)}")

    @classmethod
    def open(
        cls, shop: Shop, vendor: Vendor, price: int = 1000, currency: str = "USD", **more: object
    ) -> "ProviderDriver":
        new = NewPurchase.model_validate({"currency": currency, "price": price, **more})
        with shop.sessions.transaction() as conn:
            account = connect(conn, shop, vendor)
            bought = order_purchase(conn, shop.business_id, shop.customers[0], new)
        return cls(shop, vendor, account, bought.purchase_id)

    @property
    def mine(self) -> dict[str, object]:
        return {"gullak_purchase_id": self.purchase_id}

    def paid(self, amount: int = 1000, **more: Any) -> Json:
        metadata = more.pop("metadata", self.mine)
        return self.vendor.payment(
            more.pop("status", "succeeded"),
            amount,
            payment_id=self.payment_id,
            metadata=metadata,
            **more,
        )

    def refunded(self, amount: int = 1000, **more: Any) -> Json:
        return self.vendor.refund(amount, payment_id=self.payment_id, **more)

    def disputed(self, status: Any, **more: Any) -> Json:
        return self.vendor.dispute(status, payment_id=self.payment_id, **more)

    def receive(
        self, event: Json | bytes, event_id: str | None = None, sessions: Sessions | None = None
    ) -> ProviderEventNumber | None:
        delivery = self.vendor.signed(event, event_id=event_id)
        return take(sessions or self.shop.sessions, self.vendor, self.account, delivery)

    def process(
        self, number: ProviderEventNumber | None, sessions: Sessions | None = None
    ) -> EventStatus | None:
        assert number is not None
        with (sessions or self.shop.sessions).transaction() as conn:
            return process(conn, number)

    def report(self, *events: Json | bytes) -> list[EventStatus | None]:
        """Receive and process events one after the other."""
        return [self.process(self.receive(event)) for event in events]

    def sweep(self) -> list[EventStatus | None]:
        return [self.process(event.event_number) for event in self.events("received")]

    def purchase(self) -> Purchase:
        with self.shop.sessions.transaction() as conn:
            return get_purchase(conn, self.shop.business_id, self.purchase_id)

    def events(self, status: EventStatus | None = None) -> list[ProviderEvent]:
        """Oldest first."""
        wanted = EventFilter(status=status)
        with self.shop.sessions.transaction() as conn:
            return page_of_events(conn, self.shop.business_id, wanted, page=100)[::-1]

    def statuses(self) -> list[EventStatus]:
        return [event.status for event in self.events()]

    def details(self) -> PurchaseDetails:
        with self.shop.sessions.transaction() as conn:
            return purchase_details(conn, self.shop.business_id, self.purchase_id)

    def record_dispute(self, dispute_id: str, status: DisputeStatus, amount: int | None) -> None:
        report = ShopDispute(dispute_id=dispute_id, status=status, amount=amount)
        with self.shop.sessions.transaction() as conn:
            record_reversal(conn, self.shop.business_id, self.purchase_id, report)

    def record_payment(self, payment_id: str | None = None, amount: int | None = None) -> None:
        report = ShopPayment(payment_id=payment_id, amount=amount)
        with self.shop.sessions.transaction() as conn:
            record_payment(conn, self.shop.business_id, self.purchase_id, report)

    def record_refund(self, refund_id: str, amount: int) -> None:
        report = ShopRefund(refund_id=refund_id, amount=amount)
        with self.shop.sessions.transaction() as conn:
            record_reversal(conn, self.shop.business_id, self.purchase_id, report)

    def signed(self, currency: str = "USD") -> list[tuple[str, int]]:
        """Type and signed amount of each entry of the wallet, oldest first."""
        return [
            (entry.event_type, entry.amount_minor if entry.is_credit else -entry.amount_minor)
            for entry in reversed(self.shop.entries(currency=currency))
        ]


def connect(conn: Connection, shop: Shop, vendor: Vendor) -> ProviderAccount:
    new = NewAccount.model_validate(
        {"provider": vendor.name, "name": "Main", "webhook_secret": vendor.secret}
    )
    return connect_account(conn, shop.business_id, new)


def take(
    sessions: Sessions, vendor: Vendor, account: ProviderAccount, delivery: Delivery
) -> ProviderEventNumber | None:
    with sessions.transaction() as conn:
        sender = webhook_source(conn, vendor.name, account.account_id)
        return receive(conn, verified(sender, delivery.body, delivery.headers))
