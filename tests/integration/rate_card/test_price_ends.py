"""Prices end: withdrawn, ended, or superseded by a later one."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from metering.clock import to_wire
from metering.rate_card.catalogue import Meter
from support.command import Gullak
from support.edge import Api
from support.tenant import Shop, event
from worker.settings import Settings

LAST_WEEK = datetime.now(UTC) - timedelta(days=7)
YESTERDAY = datetime.now(UTC) - timedelta(days=1)
TOMORROW = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as opened:
        yield opened


@pytest.fixture
def gullak(
    config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Gullak:
    return Gullak.on(config, monkeypatch, capsys)


@pytest.fixture
def meter(shop: Shop) -> Meter:
    """A meter that has no price yet."""
    made = shop.meter("tokens", {"INR": "1"})
    shop.run("DELETE FROM prices")
    return made


def make(client: httpx.Client, meter: Meter, amount: str, start: object = None) -> dict[str, Any]:
    start = to_wire(start) if isinstance(start, datetime) else start
    body = {"meter_id": meter.meter_id, "currency": "USD", "price_per_unit": amount}
    answer = client.post("/prices", json={**body, "effective_from": start})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def end(client: httpx.Client, price: dict[str, Any]) -> dict[str, Any]:
    answer = client.delete(f"/prices/{price['id']}")
    assert answer.status_code == 200, answer.text
    ended: dict[str, Any] = answer.json()
    return ended


def cost_of_one(shop: Shop, at: datetime | None = None) -> int | None:
    """The cost of a token at a time (by default now). Returns None if the event is refused."""
    before = shop.charged()
    moment = to_wire(at or datetime.now(UTC))
    shop.send(event(shop.customers[0], {"tokens": 1}, at=moment))
    outcome = shop.drain()
    return int(shop.charged() - before) if outcome.posted else None


def test_a_price_is_shown_as_superseded_until_the_later_one_is_ended(
    client: httpx.Client, shop: Shop, meter: Meter
) -> None:
    wrong = make(client, meter, "300", YESTERDAY)
    right = make(client, meter, "3", LAST_WEEK)
    charged_wrongly = cost_of_one(shop)

    ended = end(client, wrong)

    assert right["superseded_by"] == wrong["id"]
    assert right["superseded_from"] == wrong["effective_from"]
    assert (charged_wrongly, cost_of_one(shop), shop.charged()) == (300, 3, 303)
    assert ended["ended_at"] is not None
    assert (ended["is_taken_back"], ended["superseded_by"]) == (False, None)
    listed = {price["id"]: price for price in client.get("/prices").json()["items"]}
    assert listed[wrong["id"]] == ended
    assert listed[right["id"]]["superseded_by"] is None


def test_a_price_that_has_charged_nothing_is_withdrawn(
    client: httpx.Client, shop: Shop, meter: Meter
) -> None:
    make(client, meter, "3", LAST_WEEK)
    wrong = make(client, meter, "300", YESTERDAY)

    ended = end(client, wrong)

    assert ended["is_taken_back"]
    late = YESTERDAY + timedelta(hours=1)
    assert (cost_of_one(shop, late), cost_of_one(shop)) == (3, 3)


def test_usage_from_the_time_of_an_ended_price_is_charged_by_it(
    client: httpx.Client, shop: Shop, meter: Meter
) -> None:
    make(client, meter, "3", LAST_WEEK)
    dear = make(client, meter, "300", YESTERDAY)
    cost_of_one(shop)

    end(client, dear)

    assert cost_of_one(shop, YESTERDAY + timedelta(hours=1)) == 300
    assert cost_of_one(shop, YESTERDAY - timedelta(hours=1)) == 3


def test_a_new_price_may_begin_where_an_ended_one_began_and_prices_late_usage(
    client: httpx.Client, shop: Shop, meter: Meter
) -> None:
    wrong = make(client, meter, "300", YESTERDAY)
    cost_of_one(shop)
    end(client, wrong)

    make(client, meter, "3", YESTERDAY)

    assert (cost_of_one(shop, YESTERDAY + timedelta(hours=1)), cost_of_one(shop)) == (3, 3)


def test_usage_is_refused_when_no_price_is_left(
    client: httpx.Client, shop: Shop, meter: Meter
) -> None:
    only = make(client, meter, "3")
    charged = cost_of_one(shop)

    end(client, only)
    refused = cost_of_one(shop)
    make(client, meter, "5")
    client.post("/refused-events/replay", json={})
    shop.drain()

    assert (charged, refused) == (3, None)
    assert shop.charged() == 3 + 5


def test_the_price_after_an_ended_one_begins_where_that_one_ended(
    client: httpx.Client, shop: Shop, meter: Meter
) -> None:
    first = make(client, meter, "3")
    cost_of_one(shop)
    ended = end(client, first)

    following = make(client, meter, "5")

    assert (first["effective_from"], following["effective_from"]) == (None, ended["ended_at"])


def test_a_price_that_has_not_begun_is_withdrawn_even_if_usage_was_charged(
    client: httpx.Client, shop: Shop, meter: Meter
) -> None:
    make(client, meter, "3")
    future = make(client, meter, "300", TOMORROW)
    cost_of_one(shop)

    assert end(client, future)["is_taken_back"]


def test_a_price_is_ended_once_and_only_by_its_own_business(
    client: httpx.Client, shop: Shop, meter: Meter
) -> None:
    price = make(client, meter, "3")
    other = Shop.open(shop.sessions, shop.buffer, name="Other")
    other.meter("tokens", {"USD": "1"})
    ((theirs,),) = shop.rows(
        f"SELECT price_id FROM prices WHERE business_id = '{other.business_id}'"
    )

    assert end(client, price) == end(client, price)
    assert client.delete(f"/prices/{theirs}").status_code == 404
    assert client.delete("/prices/prc_none").status_code == 404


def test_the_command_warns_and_ends_and_lists_prices(
    gullak: Gullak, shop: Shop, meter: Meter
) -> None:
    create = ("price", "create", "--meter", meter.meter_id, "--currency=USD")
    wrong = gullak.made(*create, "--per-unit=300", "--from", to_wire(YESTERDAY))
    right = gullak(*create, "--per-unit=3", "--from", to_wire(LAST_WEEK))
    cost_of_one(shop)

    ended = gullak("price", "end", wrong)
    listed = gullak("price", "list", "--json").json

    assert f"when {wrong} begins; if that one is wrong: gullak price end {wrong}" in right.err
    assert (ended.code, ended.out) == (0, f"{wrong} has ended\n")
    assert [price["ended_at"] is not None for price in listed] == [False, True]
    assert cost_of_one(shop) == 3
