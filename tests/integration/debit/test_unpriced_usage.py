"""Usage without a meter or price: refused and charged later, or kept by choice, with a notice."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import get_args

import httpx
import orjson
import pytest
from alembic import command
from sqlalchemy import text

from metering.clock import to_wire
from metering.debit.drain import drain_shard
from metering.debit.resources import Drain
from metering.debit.unpriced import KINDS_PER_BUSINESS_MAX
from metering.ledger.businesses import BusinessChange, change_business
from metering.rate_card.card import OnUnmetered
from metering.rate_card.cards import RateCards
from metering.usage.partitions import maintain_partitions
from support.command import Gullak
from support.edge import Api
from support.notices import undescribed
from support.tenant import CURRENCIES, Shop, at_once, event
from worker.migrate import _scripts, migrate
from worker.session import make_engine
from worker.settings import Settings, settings_from

YESTERDAY = datetime.now(UTC) - timedelta(days=1)
JUST_NOW = datetime.now(UTC) - timedelta(minutes=1)

POLICIES = get_args(OnUnmetered)


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as opened:
        yield opened


@pytest.fixture
def gullak(
    config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Gullak:
    return Gullak.on(config, monkeypatch, capsys)


def choose(shop: Shop, policy: OnUnmetered) -> None:
    with shop.sessions.transaction() as conn:
        change_business(conn, shop.business_id, BusinessChange(on_unmetered=policy))


def notices(shop: Shop) -> list[dict[str, str]]:
    rows = shop.rows(
        "SELECT CAST(data AS text) FROM webhook_events WHERE type = 'usage.unpriced'"
        " ORDER BY webhook_event_id"
    )
    return [orjson.loads(str(data)) for (data,) in rows]


def refusals(client: httpx.Client) -> list[tuple[str, str]]:
    items = client.get("/refused-events").json()["items"]
    return [(item["event_id"], item["reason"]) for item in items]


def age_notices(shop: Shop, days: float) -> None:
    shop.run(f"UPDATE unpriced_usage SET told_at = told_at - interval '{days * 24} hours'")


def change_card(shop: Shop) -> None:
    shop.meter("something", {"USD": "1"}, event_name="some.thing.else")


def test_usage_without_a_price_waits_and_is_charged_after_a_price_is_made(
    client: httpx.Client, shop: Shop
) -> None:
    meter = shop.meter("tokens", {"USD": "2"}, effective_from=JUST_NOW)
    shop.send(event(shop.customers[0], {"tokens": 3}, event_id="y-1", at=to_wire(YESTERDAY)))
    refused = shop.drain()
    found = refusals(client)
    price = {"meter_id": meter.meter_id, "currency": "USD", "price_per_unit": "1"}

    made = client.post("/prices", json={**price, "effective_from": "beginning"})
    replayed = client.post("/refused-events/replay", json={})
    posted = shop.drain()

    assert (refused.posted, refused.refused, found) == (0, 1, [("y-1", "no_price")])
    assert (made.status_code, made.json()["effective_from"]) == (201, None)
    assert (replayed.json()["replayed_count"], posted.posted, shop.charged()) == (1, 1, 3)
    assert refusals(client) == []


def test_usage_without_a_meter_waits_and_is_charged_after_a_meter_is_made(
    client: httpx.Client, gullak: Gullak, shop: Shop
) -> None:
    shop.meter("tokens", {"USD": "2"})
    shop.send(event(shop.customers[0], {"images": 3}, name="image.made", event_id="i-1"))
    shop.drain()
    found = refusals(client)

    shop.meter("images", {"USD": "5"}, event_name="image.made")
    replayed = gullak("replay", "--reason=unmetered")
    shop.drain()

    assert found == [("i-1", "unmetered")]
    assert (replayed.code, shop.charged(), refusals(client)) == (0, 15, [])


def test_a_first_price_made_today_charges_imported_usage_of_yesterday(
    gullak: Gullak, shop: Shop, tmp_path: Path
) -> None:
    meter = gullak(
        *("meter", "create", "--name=input", "--event-name=ev30", "--unit=call"),
    ).out.strip()
    gullak("price", "create", "--meter", meter, "--currency=USD", "--per-unit=7")
    file = tmp_path / "usage.ndjson"
    line = {"event_id": "y-1", "customer_id": shop.customers[0], "event_name": "ev30"}
    file.write_bytes(orjson.dumps({**line, "timestamp": to_wire(YESTERDAY), "metadata": {}}))

    assert gullak("import", str(file)).code == 0

    assert (shop.drain().posted, shop.charged()) == (1, 7)
    assert "the beginning" in gullak("price", "list").out


@pytest.mark.parametrize(
    ("start", "is_charged"), [(None, False), ("now", False), ("beginning", True)]
)
def test_a_later_price_begins_now_by_default(
    client: httpx.Client, shop: Shop, start: str | None, *, is_charged: bool
) -> None:
    meter = shop.meter("tokens", {"USD": "2"}, effective_from=JUST_NOW)
    price = {"meter_id": meter.meter_id, "currency": "USD", "price_per_unit": "1"}

    made = client.post("/prices", json={**price, "effective_from": start})
    shop.send(event(shop.customers[0], {"tokens": 1}, at=to_wire(YESTERDAY)))

    assert made.status_code == 201, made.text
    assert (shop.drain().posted == 1) == is_charged


def test_the_first_price_in_each_currency_holds_from_the_beginning(
    client: httpx.Client, shop: Shop
) -> None:
    meter = shop.meter("tokens", {"USD": "2"}, effective_from=JUST_NOW)
    price = {"meter_id": meter.meter_id, "price_per_unit": "1"}

    made = [client.post("/prices", json={**price, "currency": "INR"}).json() for _ in range(2)]

    assert made[0]["effective_from"] is None
    assert made[1]["effective_from"] is not None


def test_a_business_may_choose_to_keep_usage_without_a_price(
    client: httpx.Client, shop: Shop
) -> None:
    before = client.get("/business").json()["on_unmetered"]

    changed = client.patch("/business", json={"on_unmetered": "keep_free"})
    shop.send(event(shop.customers[0], name="health.check", event_id="h-1"))
    outcome = shop.drain()

    assert (before, changed.json()["on_unmetered"]) == ("refuse", "keep_free")
    assert (outcome.posted, outcome.unmetered, outcome.refused) == (1, 1, 0)
    assert shop.rows("SELECT currency, cost_minor FROM usage_events") == [(None, Decimal(0))]
    assert [(one["event_id"], one["outcome"]) for one in notices(shop)] == [("h-1", "kept_free")]


def test_the_policy_is_shown_and_set_by_the_command(gullak: Gullak, shop: Shop) -> None:
    first = gullak("business", "policy", "--json").json
    second = gullak("business", "policy", "--on-unmetered=keep_free", "--json").json
    third = gullak("business", "policy")

    assert (first["on_unmetered"], second["on_unmetered"]) == ("refuse", "keep_free")
    assert first["reversal_policy"] == second["reversal_policy"]
    assert "usage that nothing prices: keep_free" in third.out
    shop.send(event(shop.customers[0], name="health.check"))
    assert shop.drain().unmetered == 1


def test_a_running_drain_follows_a_new_policy_from_its_next_batch(shop: Shop) -> None:
    """The worker compiles its rate card again, as after a price change."""
    drain = Drain(shop.sessions.transaction, shop.buffer, RateCards(CURRENCIES), 100)
    counts = []
    for policy in POLICIES:
        choose(shop, policy)
        shop.send(event(shop.customers[0], name="health.check"))
        reports = [drain_shard(drain, shard, 60) for shard in shop.buffer.shards]
        counts.append(sum(report.outcome.unmetered for report in reports))

    assert counts == [0, 1]


def test_free_usage_from_before_its_first_price_is_counted(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "2"}, effective_from=JUST_NOW)
    choose(shop, "keep_free")
    shop.send(event(shop.customers[0], {"tokens": 3}, at=to_wire(YESTERDAY)))

    outcome = shop.drain()

    assert (outcome.posted, outcome.unmetered, shop.charged()) == (1, 1, 0)
    assert [one["reason"] for one in notices(shop)] == ["no_price"]


@pytest.mark.parametrize("policy", POLICIES)
def test_each_kind_has_one_notice_with_its_first_event(shop: Shop, policy: OnUnmetered) -> None:
    choose(shop, policy)
    meter = shop.meter("tokens", {"USD": "2"}, effective_from=JUST_NOW)
    for number in range(3):
        shop.send(
            event(shop.customers[0], name="new.model", event_id=f"n-{number}"),
            event(shop.customers[0], {"tokens": 1}, event_id=f"b-{number}", at=to_wire(YESTERDAY)),
            event(shop.customers[0], name="other.model", event_id=f"o-{number}"),
        )
        shop.drain()

    found = {
        (one["reason"], one["event_name"], one["meter_id"], one["event_id"])
        for one in notices(shop)
    }
    assert found == {
        ("unmetered", "new.model", None, "n-0"),
        ("unmetered", "other.model", None, "o-0"),
        ("no_price", "llm.completion", meter.meter_id, "b-0"),
    }
    assert len(notices(shop)) == 3
    assert undescribed(shop) == []


def test_a_notice_is_repeated_after_a_day_if_the_card_has_changed(shop: Shop) -> None:
    def comes() -> int:
        shop.send(event(shop.customers[0], name="new.model"))
        shop.drain()
        return len(notices(shop))

    counts = [comes()]
    change_card(shop)
    counts.append(comes())
    age_notices(shop, 1.1)
    counts += [comes(), comes()]
    age_notices(shop, 1.1)
    counts.append(comes())

    assert counts == [1, 1, 2, 2, 2]


def test_kinds_with_an_old_notice_are_deleted(shop: Shop) -> None:
    shop.send(event(shop.customers[0], name="new.model"))
    shop.drain()
    age_notices(shop, 40)

    with shop.sessions.transaction() as conn:
        maintain_partitions(conn, ahead_days=1, retention_days=30)

    assert shop.rows("SELECT 1 FROM unpriced_usage") == []


def test_the_number_of_kinds_with_a_notice_is_limited(shop: Shop) -> None:
    shop.run(
        "INSERT INTO unpriced_usage (business_id, reason, event_name, meter_id, rate_card_version)"
        f" SELECT '{shop.business_id}', 'unmetered', 'm' || n, '', 0"
        f" FROM generate_series(1, {KINDS_PER_BUSINESS_MAX}) n"
    )
    shop.send(*[event(shop.customers[0], name=f"model-{n}") for n in range(200)])

    outcome = shop.drain()

    assert (outcome.refused, notices(shop)) == (200, [])


def test_two_shards_with_a_new_kind_at_once_send_one_notice(shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        for _ in range(40):
            shop.add_customer(conn)
    shop.send(*[event(customer, name="new.model") for customer in shop.customers])

    results = at_once(*[shop.drain for _ in range(4)])

    assert [result for result in results if isinstance(result, Exception)] == []
    assert shop.rows("SELECT count(*) FROM refused_events") == [(41,)]
    assert len(notices(shop)) == 1


def test_the_notice_is_written_for_each_endpoint_in_the_transaction_of_the_batch(
    client: httpx.Client, shop: Shop
) -> None:
    made = client.post(
        "/webhooks", json={"url": "https://example.com/h", "filter_types": ["usage.unpriced"]}
    )
    shop.send(event(shop.customers[0], name="new.model"))

    shop.drain()

    assert made.status_code in {200, 201}, made.text
    assert shop.rows("SELECT count(*) FROM webhook_deliveries") == [(1,)]


def test_an_upgrade_does_not_refuse_usage_that_was_free(empty_database_url: str) -> None:
    engine = make_engine(settings_from({"DATABASE_URL": empty_database_url}))
    insert = text("INSERT INTO businesses (business_id, name) VALUES (:id, :id)")
    with engine.begin() as conn, _scripts() as config:
        config.attributes["connection"] = conn
        command.upgrade(config, "0010")
        conn.execute(insert, {"id": "bus_old"})
    migrate(engine)
    with engine.begin() as conn:
        conn.execute(insert, {"id": "bus_new"})
        found = conn.execute(text("SELECT business_id, on_unmetered FROM businesses ORDER BY 1"))
        policies = [tuple(row) for row in found]
    engine.dispose()

    assert policies == [("bus_new", "refuse"), ("bus_old", "keep_free")]


def test_the_cache_drops_the_least_recently_used_card(shop: Shop) -> None:
    shops = [shop, *(Shop.open(shop.sessions, shop.buffer, name=name) for name in ("B", "C"))]
    cards = RateCards(CURRENCIES, kept_max=2)

    def drain_one(one: Shop) -> object:
        with shop.sessions.transaction() as conn:
            versions = cards.versions(conn, {one.business_id})
            return cards.current(conn, versions)[one.business_id]

    first, _second = drain_one(shops[0]), drain_one(shops[1])
    again, _third = drain_one(shops[0]), drain_one(shops[2])

    assert again is first
    assert drain_one(shops[0]) is first
    assert list(cards._cards) == [shops[2].business_id, shops[0].business_id]
