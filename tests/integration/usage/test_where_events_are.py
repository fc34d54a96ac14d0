"""The API finds every event: buffered, posted or refused."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from dodopayments import DodoPayments

from metering.buffer.chunk import BufferedEvent
from metering.clock import to_wire
from metering.usage.refused import Selection, replay
from metering.usage.walk import BATCHES_MAX
from support.edge import Api
from support.tenant import Shop, event

NOW = datetime.now(UTC)


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as opened:
        yield opened


@pytest.fixture
def sdk(api: Api) -> Iterator[DodoPayments]:
    with DodoPayments(
        bearer_token=api.key, base_url=api.url, _strict_response_validation=True
    ) as opened:
        yield opened


def ids(client: httpx.Client, **wanted: str | int) -> list[str]:
    answer = client.get("/events", params=wanted)
    assert answer.status_code == 200, answer.text
    return [item["event_id"] for item in answer.json()["items"]]


def event_ago(
    shop: Shop, event_id: str, *, minute: int = 0, customer: int = 0, **more: str
) -> BufferedEvent:
    """An event of some minutes ago."""
    at = to_wire(NOW - timedelta(minutes=minute))
    return event(shop.customers[customer], {"tokens": 3}, event_id=event_id, at=at, **more)


def test_a_buffered_event_is_found_before_it_is_drained(client: httpx.Client, shop: Shop) -> None:
    shop.send(event_ago(shop, "e-1"))

    found = client.get("/events/e-1").json()

    assert (found["status"], found["cost"], found["ledger_entry_id"]) == ("buffered", None, None)
    assert found["customer_id"] == shop.customers[0]
    assert found["metadata"] == {"tokens": 3}


def test_a_search_for_an_unknown_event_reads_a_bounded_part_of_a_backlog_and_says_so(
    client: httpx.Client, shop: Shop
) -> None:
    """Otherwise a read-only key could keep Redis busy for all businesses."""
    note = {"note": "x" * 1000}
    for _ in range(10):
        shop.send(*(event(shop.customers[0], note) for _ in range(400)))
    shop.send(event_ago(shop, "e-newest"))
    before = shop.buffer.redis.info("stats")["total_net_output_bytes"]

    unknown = client.get("/events/e-unknown")
    listed = client.get("/events", params={"page_size": 1})

    read = shop.buffer.redis.info("stats")["total_net_output_bytes"] - before
    assert read < 4 << 20
    assert shop.buffer.backlog().bytes > 4 << 20
    assert unknown.status_code == 404
    assert "the buffer holds more than was searched" in unknown.json()["message"]
    assert client.get("/events/e-newest").json()["status"] == "buffered"
    assert [item["event_id"] for item in listed.json()["items"]] == ["e-newest"]


def test_an_unknown_event_is_not_found_if_the_whole_backlog_was_searched(
    client: httpx.Client, shop: Shop
) -> None:
    shop.send(event_ago(shop, "e-1"))

    assert client.get("/events/e-unknown").json()["message"] == "no event 'e-unknown'"


def test_a_posted_event_has_its_exact_cost_and_the_entry_that_it_is_part_of(
    client: httpx.Client, shop: Shop
) -> None:
    shop.meter("tokens", {"USD": "0.25"})
    shop.send(event_ago(shop, "e-1"), event_ago(shop, "e-2"))
    shop.drain()

    found = client.get("/events/e-1").json()

    assert (found["status"], found["cost"], found["currency"]) == ("posted", "0.75", "USD")
    assert found["ledger_entry_id"] == shop.entries()[0].entry_id


def test_an_event_that_no_meter_counts_is_posted_without_an_entry(
    client: httpx.Client, shop: Shop
) -> None:
    shop.keep_free()
    shop.send(event_ago(shop, "e-1"))
    shop.drain()

    found = client.get("/events/e-1").json()

    assert (found["status"], found["cost"], found["ledger_entry_id"]) == ("posted", "0", None)
    assert ids(client, customer_id=shop.customers[0]) == ["e-1"]


def test_a_refused_event_has_its_reason_and_is_buffered_again_by_a_replay(
    client: httpx.Client, shop: Shop
) -> None:
    shop.send(event("cus_unknown", event_id="e-1"))
    shop.drain()

    refused = client.get("/events/e-1").json()
    replay(shop.sessions.transaction, shop.buffer, Selection(business_id=shop.business_id))
    again = client.get("/events/e-1").json()

    assert (refused["status"], refused["reason"]) == ("refused", "unknown_customer")
    assert "cus_unknown" in refused["detail"]
    assert (again["status"], again["reason"]) == ("buffered", None)


def test_a_duplicate_is_shown_once_as_the_charged_event(client: httpx.Client, shop: Shop) -> None:
    shop.meter("tokens", {"USD": "0.25"})
    shop.send(event_ago(shop, "e-1"))
    shop.drain()
    shop.send(event_ago(shop, "e-1"))

    assert client.get("/events/e-1").json()["status"] == "posted"
    assert ids(client) == ["e-1"]


def test_an_event_of_another_business_is_not_found(client: httpx.Client, shop: Shop) -> None:
    other = Shop.open(shop.sessions, shop.buffer, name="Other")
    for state in ("posted", "buffered"):
        other.send(event_ago(other, f"e-{state}"))
        if state == "posted":
            other.drain()

    assert [client.get(f"/events/e-{s}").status_code for s in ("posted", "buffered")] == [404, 404]
    assert ids(client) == []
    assert ids(client, customer_id=other.customers[0]) == []


@pytest.mark.parametrize("event_id", ["a/b", "ingest", "100%", "ü", "a b", "x" * 255])
def test_every_valid_id_of_a_producer_is_found(
    sdk: DodoPayments, shop: Shop, event_id: str
) -> None:
    shop.send(event_ago(shop, event_id))
    shop.drain()

    assert sdk.usage_events.retrieve(event_id).event_id == event_id


def test_the_sdk_lists_all_states_newest_first_in_strict_mode(
    sdk: DodoPayments, shop: Shop
) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(event_ago(shop, "posted"))
    shop.drain()
    shop.send(event("cus_unknown", event_id="refused"))
    shop.drain()
    shop.send(event_ago(shop, "buffered"))

    listed = sdk.usage_events.list(page_size=100).items

    assert [item.event_id for item in listed] == ["buffered", "refused", "posted"]


FILTERS: dict[str, Mapping[str, str]] = {
    "customer": {"customer_id": "0"},
    "name": {"event_name": "search"},
    "from": {"start": (NOW - timedelta(minutes=15)).isoformat()},
    "to": {"end": (NOW - timedelta(minutes=15)).isoformat()},
}
FOUND = {
    "customer": ["a-20", "a-10"],
    "name": ["b-5"],
    "from": ["b-5", "a-10"],
    "to": ["a-20"],
}


@pytest.mark.parametrize("status", ["posted", "buffered"])
@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_selects_the_matching_events(
    client: httpx.Client, shop: Shop, name: str, status: str
) -> None:
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    shop.send(
        event_ago(shop, "a-20", minute=20),
        event_ago(shop, "a-10", minute=10),
        event_ago(shop, "b-5", minute=5, customer=1, name="search"),
    )
    if status == "posted":
        shop.drain()
    wanted = dict(FILTERS[name])
    if "customer_id" in wanted:
        wanted["customer_id"] = shop.customers[0]

    assert sorted(ids(client, **wanted)) == sorted(FOUND[name])


def test_a_meter_lists_the_events_that_it_counts(client: httpx.Client, shop: Shop) -> None:
    filtered = {"conjunction": "and", "clauses": [
        {"key": "model", "operator": "equals", "value": "large"}]}  # fmt: skip
    made = {"name": "m", "event_name": "llm.completion", "measurement_unit": "call",
            "aggregation": {"type": "count"}, "filter": filtered}  # fmt: skip
    meter_id = client.post("/meters", json=made).json()["id"]
    large, small = ({"model": "large"}, {"model": "small"})
    shop.send(
        event(shop.customers[0], large, event_id="large"),
        event(shop.customers[0], small, event_id="small"),
        event(shop.customers[0], large, event_id="other", name="search"),
    )
    shop.drain()
    shop.send(event(shop.customers[0], large, event_id="waiting"))

    assert ids(client, meter_id=meter_id) == ["waiting", "large"]
    assert ids(client, meter_id=meter_id, event_name="search") == []
    assert client.get("/events", params={"meter_id": "mtr_none"}).status_code == 404


def many(shop: Shop) -> list[str]:
    """Events of two customers, two currencies, some unmetered, some refused; newest first."""
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn, "INR")
    shop.keep_free()
    shop.meter("tokens", {"USD": "1", "INR": "70"})
    for batch in range(8):
        numbers = range(5 * batch, 5 * batch + 5)
        shop.send(*(
            event_ago(shop, f"e-{n:02}", minute=60 - n, customer=n % 2,
               name="free" if n % 5 == 4 else "llm.completion")
            for n in numbers
        ))  # fmt: skip
        shop.send(event(f"cus_unknown{batch}", event_id=f"r-{batch}"))
        shop.drain()
    return [row[0] for row in shop.rows("SELECT event_id FROM usage_events")] + [
        f"r-{n}" for n in range(8)
    ]


@pytest.mark.parametrize("page_size", [1, 3, 100])
@pytest.mark.parametrize("way", ["by number", "after the last"])
def test_the_pages_hold_every_event_once(
    client: httpx.Client, shop: Shop, page_size: int, way: str
) -> None:
    everyone = many(shop)
    whole = ids(client, page_size=100)

    listed: list[str] = []
    for number in range(len(everyone) + 1):
        by_number = way == "by number" or not listed
        place: dict[str, str | int] = (
            {"page_number": number} if by_number else {"starting_after": listed[-1]}
        )
        page = ids(client, page_size=page_size, **place)
        listed += page
        if not page:
            break

    assert sorted(listed) == sorted(everyone)
    assert listed == whole


@pytest.mark.parametrize("customer", [0, 1])
def test_the_list_of_a_customer_is_the_list_of_the_business_without_other_customers(
    client: httpx.Client, shop: Shop, customer: int
) -> None:
    many(shop)
    customer_id = shop.customers[customer]
    everyone = client.get("/events", params={"page_size": 100}).json()["items"]

    mine = ids(client, customer_id=customer_id, page_size=100)

    assert mine == [item["event_id"] for item in everyone if item["customer_id"] == customer_id]
    halves = [ids(client, customer_id=customer_id, page_size=10)]
    halves.append(ids(client, customer_id=customer_id, starting_after=halves[0][-1], page_size=100))
    assert halves[0] + halves[1] == mine


def test_a_page_follows_an_event_that_is_still_buffered(client: httpx.Client, shop: Shop) -> None:
    shop.send(event_ago(shop, "posted"))
    shop.drain()
    for name in ("older", "newer"):
        shop.send(event_ago(shop, name))

    assert ids(client, starting_after="newer") == ["older", "posted"]
    assert client.get("/events", params={"starting_after": "nowhere"}).status_code == 404


def test_a_list_over_too_many_batches_is_refused_with_advice(
    client: httpx.Client, shop: Shop
) -> None:
    with shop.sessions.transaction() as conn:
        conn.exec_driver_sql(
            "INSERT INTO usage_of_businesses SELECT %s, n, now() - n * interval '1 s',"
            " now() - n * interval '1 s', now() - n * interval '1 s', false"
            " FROM generate_series(1, %s) n",
            (shop.business_id, BATCHES_MAX + 1),
        )

    wide = client.get("/events")
    narrow = client.get("/events", params={"start": NOW.isoformat()})

    assert (wide.status_code, narrow.status_code) == (422, 200)
    assert wide.json()["details"][0]["field"] == "start"
