"""The clean-up deletes old rows page by page; it keeps the ledger and everything that waits."""

from datetime import timedelta

import pytest
from ulid import ULID

from metering import retention
from metering.clock import utc_now
from metering.ids import Currency, ProviderEventNumber
from metering.low_credit.rules import set_rule
from metering.payment.inbox import Replay, process, receive, replay, verified, waiting
from metering.payment.provider_account import NewAccount, connect_account, webhook_source
from metering.retention import Retention, prune
from metering.webhook.endpoints import NewEndpoint, create_endpoint
from support.providers import Stripe
from support.tenant import Shop, event

KEEP = Retention(webhook_days=90, provider_body_days=180, refused_days=90)
STRIPE = Stripe()


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAGE_ROWS", 2)


def clean_up(shop: Shop, slice_ms: int = 60_000) -> dict[str, int]:
    return prune(shop.sessions.transaction, KEEP, slice_ms)


def age(shop: Shop, days: int, *ids: str) -> None:
    """Make webhooks older: their ids hold their time."""
    for table in ("webhook_attempts", "webhook_deliveries", "webhook_events"):
        shop.run(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
    old = ULID.from_datetime(utc_now() - timedelta(days=days))
    named = " OR ".join(f"webhook_event_id = '{id_}'" for id_ in ids) or "true"
    for table in ("webhook_attempts", "webhook_deliveries", "webhook_events"):
        shop.run(
            f"UPDATE {table} SET webhook_event_id = 'msg_{str(old)[:10]}'"
            f" || substr(webhook_event_id, 15) WHERE {named}"
        )
        shop.run(f"ALTER TABLE {table} ENABLE TRIGGER ALL")


@pytest.fixture
def alerts(shop: Shop) -> Shop:
    """A wallet with five alerts: low, recovered, low, recovered, low."""
    with shop.sessions.transaction() as conn:
        set_rule(conn, shop.business_id, Currency("USD"), 10)
        create_endpoint(conn, shop.business_id, NewEndpoint(url="https://example.com/alerts"))
    shop.enter(100)
    for _ in range(2):
        shop.enter(95, debit=True)
        shop.enter(95)
    shop.enter(95, debit=True)
    return shop


def webhooks(shop: Shop) -> list[str]:
    rows = shop.rows("SELECT webhook_event_id FROM webhook_events ORDER BY 1")
    return [str(id_) for (id_,) in rows]


def test_old_webhooks_are_deleted_with_their_deliveries_and_newer_ones_stay(alerts: Shop) -> None:
    count = len(webhooks(alerts))
    first, *_ = webhooks(alerts)
    age(alerts, 91, first)
    before = webhooks(alerts)

    assert clean_up(alerts)["webhooks"] == 1
    assert clean_up(alerts)["webhooks"] == 0

    assert webhooks(alerts) == before[1:]
    assert alerts.rows("SELECT count(*) FROM webhook_deliveries") == [(count - 1,)]


def test_the_numbers_of_alerts_have_no_gaps_before_and_after(alerts: Shop) -> None:
    ((numbered,),) = alerts.rows("SELECT count(*) FROM webhook_events WHERE wallet_id IS NOT NULL")
    assert numbered >= 5
    age(alerts, 91)

    assert clean_up(alerts)["webhooks"] >= numbered
    assert alerts.faults() == []

    alerts.enter(95)
    assert alerts.rows("SELECT max(sequence) FROM webhook_events") == [(numbered + 1,)]
    assert alerts.faults() == []
    alerts.run("DELETE FROM webhook_deliveries")
    alerts.run("DELETE FROM webhook_events")
    assert [fault.invariant for fault in alerts.faults()] == ["alert numbers are without gaps"]


def test_a_slice_ends_after_a_page_and_the_next_one_continues(alerts: Shop) -> None:
    age(alerts, 91)
    count = len(webhooks(alerts))

    assert clean_up(alerts, slice_ms=0)["webhooks"] == 2
    assert clean_up(alerts)["webhooks"] == count - 2


def test_young_webhooks_stay(alerts: Shop) -> None:
    age(alerts, 89)

    assert clean_up(alerts)["webhooks"] == 0


# --- providers' events ----------------------------------------------------------------------------


@pytest.fixture
def received(shop: Shop) -> Shop:
    """Events of a provider: one is ignored, one is parked, one was not processed."""
    new = {"provider": "stripe", "name": "Main", "webhook_secret": STRIPE.secret}
    with shop.sessions.transaction() as conn:
        account = connect_account(conn, shop.business_id, NewAccount.model_validate(new))
        sender = webhook_source(conn, "stripe", account.account_id)
        refund = STRIPE.refund(payment_id="pi_unknown")
        for number, body in enumerate((STRIPE.unrelated(), refund, STRIPE.unrelated()), 1):
            signed = STRIPE.signed(body, event_id=f"evt_{number}")
            receive(conn, verified(sender, signed.body, signed.headers))
        for number in waiting(conn, 2):
            process(conn, number)
    shop.run("UPDATE provider_events SET processed_at = processed_at - interval '181 days'")
    return shop


def kept(shop: Shop) -> list[tuple[object, ...]]:
    return list(
        shop.rows(
            "SELECT status, octet_length(body) > 0 FROM provider_events ORDER BY event_number"
        )
    )


def test_the_bodies_of_processed_events_are_blanked_and_those_of_waiting_events_stay(
    received: Shop,
) -> None:
    assert kept(received) == [("ignored", True), ("parked", True), ("received", True)]

    assert clean_up(received)["bodies"] == 1
    assert clean_up(received)["bodies"] == 0

    assert kept(received) == [("ignored", False), ("parked", True), ("received", True)]


def test_an_event_without_a_body_is_not_replayed(received: Shop) -> None:
    clean_up(received)
    ((number,),) = received.rows("SELECT min(event_number) FROM provider_events")

    with received.sessions.transaction() as conn:
        named = Replay(event_number=ProviderEventNumber(int(str(number))))
        assert replay(conn, received.business_id, named) == 0

    assert kept(received)[0] == ("ignored", False)


def test_young_bodies_stay(received: Shop) -> None:
    received.run("UPDATE provider_events SET processed_at = now() - interval '179 days'")

    assert clean_up(received)["bodies"] == 0


# --- dead letters ---------------------------------------------------------------------------------


def test_replayed_dead_letters_are_deleted_and_waiting_ones_stay(shop: Shop) -> None:
    shop.send(*(event("cus_unknown") for _ in range(4)))
    shop.drain()
    shop.run("UPDATE refused_events SET refused_at = refused_at - interval '1000 days'")
    for days, which in ((91, "<= 2"), (89, "= 3")):
        shop.run(
            f"UPDATE refused_events SET replayed_at = now() - interval '{days} days'"
            f" WHERE refusal_id {which}"
        )

    assert clean_up(shop)["refused"] == 2

    assert shop.rows("SELECT refusal_id FROM refused_events ORDER BY 1") == [(3,), (4,)]
    assert shop.faults() == []
