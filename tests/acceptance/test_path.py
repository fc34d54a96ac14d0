"""The whole path through real workers, beat and API; and the stack that runs them.

The tests share a running stack. Each has a business of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from redis import Redis

from metering.accept import Meter
from metering.buffer.keys import PULSE
from metering.errors import ConfigurationError, DataDirInUseError
from metering.ids import Currency
from metering.low_credit.rules import set_rule
from metering.payment.manual import PaidOrder, record_paid_order
from metering.payment.provider_account import NewAccount, ProviderAccount, connect_account
from metering.purchase.purchases import NewPurchase, order_purchase
from metering.webhook.endpoints import NewEndpoint, create_endpoint, endpoint_secret
from support.own_redis import running_redis
from support.providers import Delivery, Dodo, Json, Stripe, Vendor
from support.tenant import NOW, Shop
from support.traffic import frozen, wait_for
from support.webhook_receiver import Inbox
from worker.context import open_buffer
from worker.local.up import Stack
from worker.session import Sessions, make_engine
from worker.settings import Settings, settings_from

LOW, RECOVERED = "credit.balance_low", "credit.balance_recovered"
WALK = Path(__file__).with_name("sdk_walk.py")


@pytest.fixture(scope="module")
def config(module_database_url: str, module_data_dir: Path) -> Iterator[Settings]:
    """Settings of the servers that the stack uses."""
    with running_redis(module_data_dir) as redis:
        yield settings_from({"DATABASE_URL": module_database_url, "REDIS_URL": redis.url})


@pytest.fixture(scope="module")
def stack(config: Settings, module_data_dir: Path, variables: Mapping[str, str]) -> Iterator[Stack]:
    overrides = {
        "DATABASE_URL": config.database_url.get_secret_value(),
        "REDIS_URL": config.redis_url.get_secret_value(),
        "GULLAK_WEBHOOK_ALLOW_PRIVATE": "true",
    }
    with Stack(module_data_dir / "data", variables=variables, overrides=overrides) as running:
        yield running


@pytest.fixture
def shop(config: Settings) -> Iterator[Shop]:
    """A business with one customer; a call costs 1 cent."""
    with ExitStack() as opened:
        engine = make_engine(config)
        opened.callback(engine.dispose)
        buffer = open_buffer(config)
        opened.callback(buffer.redis.close)
        shop = Shop.open(Sessions(engine), buffer)
        shop.meter("tokens", {"USD": "1"})
        yield shop


# --- the stack itself -----------------------------------------------------------------------------


def test_a_stack_uses_the_servers_it_is_given(stack: Stack, config: Settings) -> None:
    assert stack.database_url == config.database_url.get_secret_value()
    assert stack.redis_url == config.redis_url.get_secret_value()
    assert set(stack.pids) == {"supervisor", "worker", "worker_webhook", "beat", "api"}
    assert stack.missing() == []


def test_a_data_directory_is_for_one_stack(stack: Stack, variables: Mapping[str, str]) -> None:
    second = Stack(stack.data_dir, variables=variables)

    with pytest.raises(DataDirInUseError) as refused, second:
        pass

    assert refused.value.pid == os.getpid()
    assert stack.missing() == []


def test_a_stack_that_cannot_start_leaves_nothing_running(
    data_dir: Path, variables: Mapping[str, str]
) -> None:
    overrides = {"DATABASE_URL": "postgresql://gullak:x@127.0.0.1:1/gullak"}
    children = psutil.Process().children()

    with (
        pytest.raises(ConfigurationError, match="database was not migrated"),
        Stack(data_dir, variables=variables, overrides=overrides),
    ):
        pass

    assert psutil.Process().children() == children


def test_the_worker_sweeps_in_place_of_a_silent_beat(stack: Stack) -> None:
    with frozen(stack.pids["beat"]), Redis.from_url(stack.redis_url) as redis:
        # The first may still be a sweep that beat had sent.
        for _ in range(3):
            redis.delete(PULSE)
            wait_for(lambda: redis.exists(PULSE))


# --- usage in, webhooks out -----------------------------------------------------------------------


def statuses(shop: Shop, table: str) -> list[str]:
    """The statuses in a table of the business."""
    found = f"SELECT DISTINCT status FROM {table} WHERE business_id = '{shop.business_id}'"
    return [str(status) for (status,) in shop.rows(found)]


@dataclass
class Receiver:
    """A receiver of alerts that verifies each signature."""

    inbox: Inbox

    def alerts(self) -> list[tuple[str, int]]:
        """Type and balance of each alert, in the order of arrival."""
        alerts_received = [json.loads(body) for body in self.inbox.bodies]
        return [(each["type"], each["data"]["available_balance"]) for each in alerts_received]


@pytest.fixture
def receiver(shop: Shop, httpserver: HTTPServer) -> Receiver:
    shop.enter(100)
    with shop.sessions.transaction() as conn:
        set_rule(conn, shop.business_id, Currency("USD"), 20)
        wanted = NewEndpoint(url=httpserver.url_for("/alerts"), filter_types=[LOW, RECOVERED])
        made = create_endpoint(conn, shop.business_id, wanted)
        secret = endpoint_secret(conn, shop.business_id, made.endpoint_id)
    inbox = Inbox(secret)
    httpserver.expect_request("/alerts", method="POST").respond_with_handler(inbox)
    return Receiver(inbox)


def test_usage_becomes_one_alert_and_a_purchase_one_recovery(
    stack: Stack, shop: Shop, receiver: Receiver, httpserver: HTTPServer
) -> None:
    (customer,) = shop.customers

    with Meter(stack.redis_url, shop.business_id, handle_sigterm=False) as meter:
        for number in range(90):
            for _ in range(2):  # each comes twice, as it does when an answer is lost
                meter.record(
                    "llm.completion",
                    customer,
                    event_id=f"call-{number}",
                    timestamp=NOW,
                    metadata={"tokens": 1},
                )

    wait_for(receiver.alerts)
    wait_for(lambda: not shop.buffer.backlog().busy)
    ((kind, balance),) = receiver.alerts()
    assert kind == LOW
    assert balance <= 20
    assert shop.wallet().balance_minor == 10

    order = PaidOrder(order_id="order-1", customer_id=customer, currency="USD", paid=500)
    for _ in range(2):  # the shop's call is repeated as well
        with shop.sessions.transaction() as conn:
            record_paid_order(conn, shop.business_id, order)

    wait_for(lambda: len(receiver.alerts()) > 1)
    wait_for(
        lambda: shop.rows("SELECT DISTINCT status FROM webhook_deliveries") == [("delivered",)]
    )
    assert receiver.alerts()[1:] == [(RECOVERED, 510)]
    assert len(set(receiver.inbox.ids)) == 2
    assert [entry.kind for entry in shop.entries()].count("purchase") == 1
    assert shop.faults() == []
    httpserver.check_assertions()
    httpserver.check_handler_errors()


# --- payments in, credit out ----------------------------------------------------------------------


def connected(shop: Shop, vendor: Vendor) -> ProviderAccount:
    new = NewAccount(provider=vendor.name, name="Main", webhook_secret=SecretStr(vendor.secret))
    with shop.sessions.transaction() as conn:
        return connect_account(conn, shop.business_id, new)


def bought(shop: Shop) -> dict[str, object]:
    """The metadata of a payment for a new purchase of 1,000 cents."""
    new = NewPurchase(currency="USD", price=1000)
    with shop.sessions.transaction() as conn:
        purchase = order_purchase(conn, shop.business_id, shop.customers[0], new)
    return {"gullak_purchase_id": purchase.purchase_id}


def deliver(client: httpx.Client, account: ProviderAccount, delivery: Delivery) -> None:
    """Deliver twice, as a provider does after a lost answer."""
    for _ in range(2):
        answer = client.post(
            f"/providers/{account.provider}/webhooks",
            params={"account": account.account_id},
            content=delivery.body,
            headers=dict(delivery.headers),
        )
        assert answer.status_code == 200


def test_provider_events_in_any_order_change_the_wallet_once(stack: Stack, shop: Shop) -> None:
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
            statuses(shop, "provider_events") == ["applied"]
            and shop.wallet().balance_minor == 2 * 750
        )
    )
    assert [entry.event_type for entry in shop.entries()].count("payment") == 2
    assert shop.wallet().frozen_minor == 0
    assert statuses(shop, "purchases") == ["partially_reversed"]
    assert shop.faults() == []


# --- the vendor's SDK -----------------------------------------------------------------------------


def test_the_walk_with_the_official_sdk_succeeds(stack: Stack) -> None:
    walked = subprocess.run(
        [sys.executable, str(WALK), stack.api_url, stack.api_key],
        capture_output=True,
        text=True,
        check=False,
    )

    assert walked.returncode == 0, walked.stdout + walked.stderr
