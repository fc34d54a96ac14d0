"""The gauges of waiting work: they equal what `gullak status` shows, and fall to zero."""

import time

from prometheus_client import REGISTRY

from metering.usage.refused import Selection, replay
from support.tenant import Shop, event
from support.webhook_receiver import Bench
from worker.metrics import publish, refusal_reasons
from worker.status import Buffered, read_buffered, read_waiting

pytest_plugins = ("support.webhook_fixtures",)

CURRENCIES = ("USD", "INR")


def measured(shop: Shop) -> None:
    buffered = read_buffered(shop.buffer)
    assert isinstance(buffered, Buffered)
    with shop.sessions.snapshot() as conn:
        publish(buffered, read_waiting(conn), CURRENCIES)


def gauge(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"gullak_{name}", labels)


def test_every_label_exists_from_the_first_measurement_on(shop: Shop) -> None:
    measured(shop)

    assert {gauge("refused_events", reason=reason) for reason in refusal_reasons()} == {0}
    assert {gauge("webhook_deliveries", state=s) for s in ("pending", "failing", "dead")} == {0}
    assert {gauge("parked", what=w) for w in ("payments", "charges", "provider_events")} == {0}
    assert {gauge("wallets_below_zero", currency=currency) for currency in CURRENCIES} == {0}
    assert gauge("oldest_buffered_event_age_seconds") == 0
    assert time.time() - (gauge("measured_timestamp_seconds") or 0) < 60


def test_the_age_of_the_oldest_buffered_event_grows_until_it_is_drained(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(event(shop.customers[0]))
    time.sleep(0.2)
    shop.send(event(shop.customers[0]))
    measured(shop)
    waiting = gauge("oldest_buffered_event_age_seconds")
    shop.drain()
    measured(shop)

    assert waiting is not None
    assert waiting >= 0.2
    assert gauge("oldest_buffered_event_age_seconds") == 0


def test_refused_events_are_counted_by_reason_until_they_are_charged(shop: Shop) -> None:
    shop.send(*(event(f"cus_{n}") for n in range(3)))
    shop.drain()
    measured(shop)
    refused = gauge("refused_events", reason="unknown_customer")
    replay(shop.sessions.transaction, shop.buffer, Selection())
    measured(shop)

    assert refused == 3
    assert gauge("refused_events", reason="unknown_customer") == 0


def test_wallets_below_zero_are_counted_until_they_are_paid(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(event(shop.customers[0], {"tokens": 7}))
    shop.drain()
    measured(shop)
    owed = gauge("wallets_below_zero", currency="USD")
    shop.enter(7)
    measured(shop)

    assert owed == 1
    assert gauge("wallets_below_zero", currency="USD") == 0


def test_undelivered_webhooks_are_counted_by_state(shop: Shop, bench: Bench) -> None:
    _, inbox = bench.receiver()
    inbox.answers(500)
    bench.publish(2)
    bench.deliver()
    bench.publish()
    measured(shop)
    found = {s: gauge("webhook_deliveries", state=s) for s in ("pending", "failing", "dead")}
    for _ in range(2):
        bench.make_due()
        bench.deliver()
    measured(shop)

    assert found == {"pending": 3, "failing": 2, "dead": 0}
    assert gauge("webhook_deliveries", state="dead") == 2
