"""From a provider's webhook to credit and back, through a real API, workers and beat."""

import httpx
import pytest
from pydantic import SecretStr

from metering.buffer.stream import UsageBuffer
from metering.payment.provider_account import NewAccount, ProviderAccount, connect_account
from metering.purchase.purchases import NewPurchase, order_purchase
from support.providers import Delivery, Dodo, Json, Stripe, Vendor
from support.tenant import Shop
from support.traffic import wait_for
from worker.local.up import Stack
from worker.session import Sessions


@pytest.fixture
def shop(sessions: Sessions, buffer: UsageBuffer) -> Shop:
    return Shop.open(sessions, buffer)


def connected(shop: Shop, vendor: Vendor) -> ProviderAccount:
    new = NewAccount(provider=vendor.name, name="Main", webhook_secret=SecretStr(vendor.secret))
    with shop.sessions.transaction() as conn:
        return connect_account(conn, shop.business_id, new)


def bought(shop: Shop) -> dict[str, object]:
    """What the payment of a new purchase of 1,000 cents carries with it."""
    new = NewPurchase(currency="USD", price=1000)
    with shop.sessions.transaction() as conn:
        purchase = order_purchase(conn, shop.business_id, shop.customers[0], new)
    return {"gullak_purchase_id": purchase.purchase_id}


def deliver(client: httpx.Client, account: ProviderAccount, delivery: Delivery) -> None:
    """As a provider does it: once more, because an answer may be lost."""
    for _ in range(2):
        answer = client.post(
            f"/providers/{account.provider}/webhooks",
            params={"account": account.account_id},
            content=delivery.body,
            headers=dict(delivery.headers),
        )
        assert answer.status_code == 200


def test_what_providers_say_in_any_order_ends_in_the_wallet_once(shop: Shop, stack: Stack) -> None:
    vendors: list[Vendor] = [Stripe(), Dodo()]
    with httpx.Client(base_url=stack.api_url, timeout=30) as client:
        for vendor in vendors:
            account, mine = connected(shop, vendor), bought(shop)
            events: list[Json] = [
                vendor.refund(250),
                vendor.payment(metadata=mine),
                vendor.dispute("opened"),
                vendor.dispute("won", at=200),
            ]
            for event in events:
                deliver(client, account, vendor.signed(event))

    wait_for(
        lambda: (
            shop.rows("SELECT DISTINCT status FROM provider_events") == [("applied",)]
            and shop.wallet().balance_minor == 2 * 750
        )
    )
    assert [entry.event_type for entry in shop.entries()].count("payment") == 2
    assert shop.wallet().frozen_minor == 0
    assert shop.rows("SELECT DISTINCT status FROM purchases") == [("partially_reversed",)]
    assert shop.faults() == []
