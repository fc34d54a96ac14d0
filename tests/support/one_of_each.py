"""A business with one object of each kind, for tests of all routes."""

import httpx
from pydantic import SecretStr

from metering.ids import ProviderEventNumber
from metering.payment.inbox import process, receive, verified
from metering.payment.provider_account import NewAccount, connect_account, webhook_source
from support.checkout_driver import CheckoutDriver
from support.providers import Stripe
from support.tenant import Shop, event

TOP_UP = {"threshold": -7, "payment_method": "pm_1", "day_cap": 1000, "month_cap": 1000}


def one_of_each(shop: Shop, client: httpx.Client) -> dict[str, str]:
    """Make one object of each kind for `shop`, with the key of `client`; return the ids by name."""
    driver = CheckoutDriver(shop)
    shop.meter("tokens", {"USD": "1"})
    shop.send(event(shop.customers[0], event_id="evt-victim", name="free"))
    shop.send(event("cus_unknown", event_id="evt-refused"))
    shop.drain()
    customer_id = shop.customers[0]
    entry = {"amount": 500, "currency": "USD", "entry_type": "credit"}
    for currency in ("USD", "INR"):
        entry["currency"] = currency
        client.post(f"/customers/{customer_id}/wallets/ledger-entries", json=entry)
    package = client.post("/packages", json={"name": "p", "currency": "INR", "price": 9})
    order = {"package_id": package.json()["id"]}
    purchase = client.post(f"/customers/{customer_id}/purchases", json=order).json()
    client.post(f"/purchases/{purchase['id']}/payments", json={})
    client.post(f"/purchases/{purchase['id']}/refunds", json={"refund_id": "re_1", "amount": 1})
    rule = client.post("/low-credit-rules", json={"currency": "USD", "threshold": 5}).json()
    meter = client.get("/meters").json()["items"][0]
    webhook = client.post("/webhooks", json={"url": "https://example.com/"}).json()
    checkout = client.post(
        f"/customers/{customer_id}/checkouts",
        json={"amount": 100, "currency": "INR", "idempotency_key": "k1"},
    ).json()
    wallet = f"/customers/{customer_id}/wallets/INR/top-up"
    client.put(wallet, json={**TOP_UP, "package_id": driver.package(currency="INR")})
    return {
        "customer_id": customer_id,
        "entry_id": shop.entries(currency="INR")[0].entry_id,
        "package_id": order["package_id"],
        "purchase_id": purchase["id"],
        "meter_id": meter["id"],
        "price_id": client.get("/prices").json()["items"][0]["id"],
        "rule_id": rule["id"],
        "event_id": "evt-victim",
        "refused_event_id": "evt-refused",
        "refusal_id": client.get("/refused-events").json()["items"][0]["id"],
        "webhook_id": webhook["id"],
        "provider_event_id": str(parked_event(shop)),
        "checkout_id": checkout["id"],
        "currency": "INR",
        "account_id": driver.account_id,
    }


def parked_event(shop: Shop) -> ProviderEventNumber | None:
    """An event of a provider about an unknown payment."""
    vendor = Stripe()
    new = NewAccount(provider="stripe", name="Main", webhook_secret=SecretStr(vendor.secret))
    delivery = vendor.signed(vendor.refund())
    with shop.sessions.transaction() as conn:
        account = connect_account(conn, shop.business_id, new)
        sender = webhook_source(conn, "stripe", account.account_id)
        number = receive(conn, verified(sender, delivery.body, delivery.headers))
        assert number is not None
        assert process(conn, number) == "parked"
    return number
