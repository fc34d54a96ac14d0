"""Refused events over HTTP: listed with their reasons, and replayed after the cause is gone."""

from collections.abc import Iterator

import httpx
import pytest

from support.edge import Api
from support.tenant import Shop, event


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as opened:
        yield opened


def refuse(shop: Shop, *names: str, customer_id: str = "cus_unknown") -> None:
    for name in names:
        shop.send(event(customer_id, event_id=name))
        shop.drain()


def refused_ids(client: httpx.Client, **wanted: str | int) -> list[str]:
    answer = client.get("/refused-events", params=wanted)
    assert answer.status_code == 200, answer.text
    return [item["event_id"] for item in answer.json()["items"]]


def test_a_refused_event_is_listed_with_its_reason_and_content(
    client: httpx.Client, shop: Shop
) -> None:
    refuse(shop, "e-1")

    (found,) = client.get("/refused-events").json()["items"]

    assert (found["event_id"], found["reason"]) == ("e-1", "unknown_customer")
    assert "cus_unknown" in found["detail"]
    assert found["event"]["metadata"] == {"tokens": 1}


def test_refused_events_are_listed_newest_first_page_by_page(
    client: httpx.Client, shop: Shop
) -> None:
    refuse(shop, "e-1", "e-2", "e-3")

    first = client.get("/refused-events", params={"page_size": 2}).json()["items"]

    assert [item["event_id"] for item in first] == ["e-3", "e-2"]
    assert refused_ids(client, page_size=2, page_number=1) == ["e-1"]
    assert refused_ids(client, starting_after=first[-1]["id"]) == ["e-1"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"customer_id": "cus_b"}, ["e-2"]),
        ({"event_id": "e-1"}, ["e-1"]),
        ({"reason": "unknown_customer"}, ["e-2", "e-1"]),
        ({"reason": "conflict"}, []),
    ],
)
def test_a_filter_selects_the_matching_events(
    client: httpx.Client, shop: Shop, wanted: dict[str, str], found: list[str]
) -> None:
    refuse(shop, "e-1", customer_id="cus_a")
    refuse(shop, "e-2", customer_id="cus_b")

    assert refused_ids(client, **wanted) == found


@pytest.mark.parametrize("after", ["x", "9" * 30, "-1", "12345"])
def test_a_page_after_an_unknown_event_is_not_found(client: httpx.Client, after: str) -> None:
    answer = client.get("/refused-events", params={"starting_after": after})

    assert answer.status_code == 404


def test_a_replay_after_the_cause_is_gone_charges_the_event_once(
    client: httpx.Client, shop: Shop
) -> None:
    meter = shop.meter("tokens", {"INR": "2"})
    with shop.sessions.transaction() as conn:
        conn.exec_driver_sql("UPDATE customers SET billing_currency = 'USD'")
    refuse(shop, "e-1", customer_id=shop.customers[0])
    with shop.sessions.transaction() as conn:
        shop.price(conn, meter, "USD", "3")

    answers = [client.post("/refused-events/replay", json={}).json() for _ in range(2)]
    shop.drain()

    assert [answer["replayed_count"] for answer in answers] == [1, 0]
    assert shop.charged() == 3
    assert refused_ids(client) == []


def test_a_replay_sends_only_the_named_events(client: httpx.Client, shop: Shop) -> None:
    refuse(shop, "e-1", "e-2")

    answer = client.post("/refused-events/replay", json={"event_id": "e-1"})

    assert answer.json() == {"replayed_count": 1, "has_more": False}
    assert refused_ids(client) == ["e-2"]


def test_a_replay_sends_no_event_of_another_business(client: httpx.Client, shop: Shop) -> None:
    other = Shop.open(shop.sessions, shop.buffer, name="Other")
    refuse(other, "e-1")

    answer = client.post("/refused-events/replay", json={})

    assert answer.json()["replayed_count"] == 0
    assert shop.buffer.backlog().events == 0
