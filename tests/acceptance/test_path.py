"""The whole path through real workers and beat: usage in, entry, low-credit webhook out; credit."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from pytest_httpserver import HTTPServer

from metering.accept import Meter
from metering.buffer.stream import UsageBuffer
from metering.ids import Currency
from metering.low_credit.rules import set_rule
from metering.payment.manual import PaidOrder, record_paid_order
from metering.webhook.endpoints import NewEndpoint, create_endpoint, endpoint_secret
from support.tenant import NOW, Shop
from support.traffic import wait_for
from support.webhook_receiver import Inbox
from worker.local.up import Stack
from worker.session import Sessions

LOW, RECOVERED = "credit.balance_low", "credit.balance_recovered"


@dataclass
class Receiver:
    """The shop's own receiver of alerts; it verifies each signature before it takes a webhook."""

    inbox: Inbox

    def alerts(self) -> list[tuple[str, int]]:
        """Type and balance of what came, in the order in which it came."""
        told = [json.loads(body) for body in self.inbox.bodies]
        return [(each["type"], each["data"]["available_balance"]) for each in told]


@pytest.fixture
def shop(sessions: Sessions, buffer: UsageBuffer) -> Shop:
    """One customer with a credit of 100 cents and a threshold of 20; a call costs 1 cent."""
    opened = Shop.open(sessions, buffer)
    opened.meter("tokens", {"USD": "1"})
    opened.enter(100)
    with sessions.transaction() as conn:
        set_rule(conn, opened.business_id, Currency("USD"), 20)
    return opened


@pytest.fixture
def receiver(shop: Shop, httpserver: HTTPServer) -> Receiver:
    with shop.sessions.transaction() as conn:
        wanted = NewEndpoint(url=httpserver.url_for("/alerts"), filter_types=[LOW, RECOVERED])
        made = create_endpoint(conn, shop.business_id, wanted)
        secret = endpoint_secret(conn, shop.business_id, made.endpoint_id)
    inbox = Inbox(secret)
    httpserver.expect_request("/alerts", method="POST").respond_with_handler(inbox)
    return Receiver(inbox)


def test_usage_becomes_one_alert_and_a_purchase_one_recovery(
    shop: Shop, receiver: Receiver, start_stack: Callable[..., Stack], httpserver: HTTPServer
) -> None:
    stack = start_stack(GULLAK_WEBHOOK_ALLOW_PRIVATE="true")
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
