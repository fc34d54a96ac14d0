"""From a debit to its events and back: their quantities, their prices, and the sum."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain
from typing import Any

import httpx
import pytest

from metering.buffer.chunk import BufferedEvent
from metering.clock import to_wire
from metering.ledger.entry import Entry
from metering.rate_card.catalogue import (
    Aggregation,
    Meter,
    NewMeter,
    archive_meter,
    create_meter,
    end_price,
    list_meters,
    list_prices,
)
from metering.rate_card.filter import Filter
from metering.usage.entry_usage import NOTE
from support.command import Gullak
from support.edge import Api
from support.tenant import Shop, event
from worker.settings import Settings

NOW = datetime.now(UTC)
DEARER_SINCE = NOW - timedelta(minutes=30)


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as opened:
        yield opened


@pytest.fixture
def gullak(
    config: Settings,
    shop: Shop,  # noqa: ARG001 - the only business need not be named
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Gullak:
    return Gullak.on(config, monkeypatch, capsys)


def event_ago(
    shop: Shop, event_id: str, minutes: int = 0, customer: int = 0, **more: Any
) -> BufferedEvent:
    """An event of some minutes ago."""
    at = to_wire(NOW - timedelta(minutes=minutes))
    return event(shop.customers[customer], more, event_id=event_id, at=at)


def set_prices(shop: Shop) -> None:
    """Price tokens, with a higher price since half an hour ago, and large answers in addition."""
    tokens = shop.meter("tokens", {"USD": "0.25"})
    only_large = Filter.model_validate(
        {
            "conjunction": "and",
            "clauses": [{"key": "model", "operator": "equals", "value": "large"}],
        }
    )
    new = NewMeter(
        name="large calls",
        event_name="llm.completion",
        measurement_unit="call",
        aggregation=Aggregation(type="count"),
        filter=only_large,
    )
    with shop.sessions.transaction() as conn:
        shop.price(conn, tokens, "USD", "0.5", effective_from=DEARER_SINCE)
        large = create_meter(conn, shop.business_id, new)
        shop.price(conn, large, "USD", "7.000000000001")


def debit(shop: Shop) -> Entry:
    """Charge three events of the first customer and one of another in one batch."""
    set_prices(shop)
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    shop.send(
        event_ago(shop, "new", 1, tokens=3, model="large"),
        event_ago(shop, "old", 60, tokens=4, model="small"),
        event_ago(shop, "zero", 2, tokens=0, model="large"),
    )
    shop.send(event_ago(shop, "other", 1, customer=1, tokens=1, model="small"))
    shop.drain()
    (entry,) = shop.entries()
    return entry


def usage(client: httpx.Client, entry: Entry, **params: str | int) -> list[dict[str, Any]]:
    path = f"/customers/{entry.customer_id}/wallets/ledger-entries/{entry.entry_id}/usage"
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


def ids(client: httpx.Client, **params: str | int) -> list[str]:
    answer = client.get("/events", params=params)
    assert answer.status_code == 200, answer.text
    return [item["event_id"] for item in answer.json()["items"]]


def test_each_event_of_a_debit_has_its_quantities_and_the_prices_of_its_time(
    client: httpx.Client, shop: Shop
) -> None:
    entry = debit(shop)

    found = usage(client, entry)

    assert [(e["event_id"], e["cost"], e["adds_up"]) for e in found] == [
        ("new", "8.500000000001", True),
        ("zero", "7.000000000001", True),
        ("old", "1", True),
    ]
    assert [
        [
            (line["meter_name"], line["quantity"], line["unit_price"], line["cost"])
            for line in e["lines"]
        ]
        for e in found
    ] == [
        [("tokens", "3", "0.5", "1.5"), ("large calls", "1", "7.000000000001", "7.000000000001")],
        [("large calls", "1", "7.000000000001", "7.000000000001")],
        [("tokens", "4", "0.25", "1")],
    ]


def test_the_lines_of_a_debit_add_up_to_it_exactly(client: httpx.Client, shop: Shop) -> None:
    entry = debit(shop)

    lines = [line for e in usage(client, entry) for line in e["lines"]]

    assert sum(Decimal(line["cost"]) for line in lines) == entry.exact_cost


def test_the_list_of_events_goes_from_a_debit_to_its_events_and_back(
    client: httpx.Client, shop: Shop
) -> None:
    entry = debit(shop)
    shop.send(event_ago(shop, "later", tokens=1))
    shop.drain()
    shop.send(event_ago(shop, "buffered", tokens=1))

    assert ids(client, ledger_entry_id=entry.entry_id) == ["new", "zero", "old"]
    assert client.get("/events/old").json()["ledger_entry_id"] == entry.entry_id
    assert client.get("/events/later").json()["ledger_entry_id"] != entry.entry_id


def test_the_pages_of_a_debit_s_events_have_no_gap(client: httpx.Client, shop: Shop) -> None:
    entry = debit(shop)
    wanted: dict[str, str | int] = {"ledger_entry_id": entry.entry_id, "page_size": 2}

    assert ids(client, **wanted, page_number=1) == ["old"]
    assert ids(client, **wanted, starting_after="new") == ["zero", "old"]
    assert [e["event_id"] for e in usage(client, entry, page_size=2, page_number=1)] == ["old"]
    assert [e["event_id"] for e in usage(client, entry, starting_after="zero")] == ["old"]


def test_other_filters_hold_within_a_debit(client: httpx.Client, shop: Shop) -> None:
    entry = debit(shop)
    since = {"start": to_wire(DEARER_SINCE)}

    assert ids(client, ledger_entry_id=entry.entry_id, **since) == ["new", "zero"]
    assert ids(client, ledger_entry_id=entry.entry_id, event_name="search") == []
    assert ids(client, ledger_entry_id=entry.entry_id, customer_id=shop.customers[1]) == []


def test_all_events_of_a_large_debit_can_be_read(client: httpx.Client, shop: Shop) -> None:
    set_prices(shop)
    shop.send(*(event_ago(shop, f"e-{n:04}", tokens=1) for n in range(1005)))
    shop.drain()
    (entry,) = shop.entries()

    pages = [
        ids(client, ledger_entry_id=entry.entry_id, page_size=100, page_number=page)
        for page in range(12)
    ]

    assert [len(page) for page in pages] == [100] * 10 + [5, 0]
    assert sorted(chain(*pages)) == [f"e-{n:04}" for n in range(1005)]


def test_changes_after_a_debit_do_not_change_its_lines(
    client: httpx.Client, shop: Shop, gullak: Gullak
) -> None:
    """A new meter, a price from the past, an archived meter and an ended price."""
    entry = debit(shop)
    before, printed = usage(client, entry), gullak("explain", entry.entry_id).out
    shop.meter(None, {"USD": "100"})
    with shop.sessions.transaction() as conn:
        tokens, large = list_meters(conn, shop.business_id)[:2]
        shop.price(conn, tokens, "USD", "9", effective_from=NOW - timedelta(minutes=10))
        archive_meter(conn, shop.business_id, large.meter_id)
        for price in list_prices(conn, shop.business_id):
            end_price(conn, shop.business_id, price.price_id)

    assert usage(client, entry) == before
    assert gullak("explain", entry.entry_id).out == printed
    assert {e["adds_up"] for e in before} == {True}
    lines = [line for e in before for line in e["lines"]]
    assert sum(Decimal(line["cost"]) for line in lines) == entry.exact_cost


def charge_beside_archived_meter(shop: Shop) -> tuple[Meter, Entry]:
    set_prices(shop)
    calls = shop.meter(None, {"USD": "100"})
    with shop.sessions.transaction() as conn:
        archive_meter(conn, shop.business_id, calls.meter_id)
    shop.charge(2)
    (entry,) = shop.entries()
    return calls, entry


def test_a_meter_that_was_archived_before_a_debit_has_no_line(
    client: httpx.Client, shop: Shop
) -> None:
    _, entry = charge_beside_archived_meter(shop)

    (found,) = usage(client, entry)

    assert [line["meter_name"] for line in found["lines"]] == ["tokens"]
    assert (found["adds_up"], found["note"]) == (True, None)


def test_lines_that_do_not_add_up_are_shown_and_marked(
    client: httpx.Client, shop: Shop, gullak: Gullak
) -> None:
    """The time when a meter was archived is lost when it is taken back into use."""
    calls, entry = charge_beside_archived_meter(shop)
    with shop.sessions.transaction() as conn:
        archive_meter(conn, shop.business_id, calls.meter_id, archived=False)

    (found,) = usage(client, entry)
    (in_json,) = gullak("explain", entry.entry_id, "--json").json["usage"]
    output = gullak("explain", entry.entry_id).out

    assert found["cost"] == "1"
    for shown in (found, in_json):
        assert (shown["adds_up"], shown["note"]) == (False, NOTE)
        assert [line["meter_name"] for line in shown["lines"]] == ["tokens", "calls"]
    rows = [line.split()[1:6] for line in output.splitlines() if found["event_id"] in line]
    assert rows[0][0] == "1"
    assert rows[1:] == [["*", "tokens", "2", "0.5", "1"], ["*", "calls", "1", "100", "100"]]
    assert f"* {NOTE}" in output


def test_what_is_carried_in_and_the_cost_are_the_amount_and_what_is_carried_out(
    client: httpx.Client, shop: Shop, gullak: Gullak
) -> None:
    set_prices(shop)
    shop.enter(500)
    for tokens in (3, 4, 5):
        shop.send(event_ago(shop, f"of-{tokens}", 60, tokens=tokens))
        shop.drain()
    entries = shop.entries()
    carried = [
        [
            line.split()[-1]
            for line in gullak("explain", entry.entry_id).out.splitlines()
            if line.startswith(("carried in (minor)", "exact cost (minor)", "carried out (minor)"))
        ]
        for entry in entries
    ]
    path = f"/customers/{shop.customers[0]}/wallets/ledger-entries"
    listed = client.get(path).json()["items"]

    assert [entry.amount_minor for entry in entries] == [2, 1, 0, 500]
    assert carried[:3] == [["0.75", "1.25", "0"], ["0.75", "1", "0.75"], ["0", "0.75", "0.75"]]
    assert "carried" not in gullak("explain", entries[3].entry_id).out
    for item in listed:
        before, cost = Decimal(item["remainder_before"]), Decimal(item["exact_cost"])
        assert before + cost == item["amount"] + Decimal(item["remainder"])


def test_events_older_than_the_retention_are_shown_as_deleted(
    client: httpx.Client, shop: Shop, gullak: Gullak
) -> None:
    entry = debit(shop)
    shop.run("DELETE FROM usage_events")

    assert usage(client, entry) == []
    assert ids(client, ledger_entry_id=entry.entry_id) == []
    assert "the rows of its events are older than the retention" in (
        gullak("explain", entry.entry_id).out
    )


def test_entries_of_a_batch_that_was_split_share_their_events(
    client: httpx.Client, shop: Shop, gullak: Gullak
) -> None:
    set_prices(shop)
    shop.run(
        "ALTER TABLE usage_events ADD CONSTRAINT no_culprit CHECK (event_id <> 'culprit') NOT VALID"
    )
    shop.send(*(event_ago(shop, name, tokens=1) for name in ("a", "b", "culprit", "c", "d")))
    shop.drain()
    entries = shop.entries()

    events = [ids(client, ledger_entry_id=entry.entry_id) for entry in entries]
    shown = gullak("explain", entries[0].entry_id).out

    assert len(entries) > 1
    assert sum(entry.event_count for entry in entries) == 4
    assert [sorted(found) for found in events] == [["a", "b", "c", "d"]] * len(entries)
    assert f"these events are also those of {entries[1].entry_id}" in shown


def test_an_entry_that_is_not_usage_has_no_events(
    client: httpx.Client, shop: Shop, gullak: Gullak
) -> None:
    shop.enter(500)
    (entry,) = shop.entries()

    assert usage(client, entry) == []
    assert ids(client, ledger_entry_id=entry.entry_id) == []
    assert "events" not in gullak("explain", entry.entry_id).out


def test_the_debit_of_another_business_is_not_found(api: Api, shop: Shop) -> None:
    entry = debit(shop)
    other = Shop.open(shop.sessions, shop.buffer, name="Other")
    with api.client(api.key_for(business_id=other.business_id)) as client:
        listed = client.get("/events", params={"ledger_entry_id": entry.entry_id})
        unknown = client.get("/events", params={"ledger_entry_id": "ent_0"})

    assert (listed.status_code, unknown.status_code) == (404, 404)


# --- commands -------------------------------------------------------------------------------------


def test_explain_shows_events_quantities_prices_and_costs(shop: Shop, gullak: Gullak) -> None:
    entry = debit(shop)

    shown = gullak("explain", entry.entry_id).out
    lines = [line.split() for line in shown.splitlines()]
    data = gullak("explain", entry.entry_id, "--json").json

    assert [line[:5] for line in lines if line[:1] in (["new"], ["old"])] == [
        ["new", "tokens", "3", "0.5", "1.5"],
        ["new", "large", "calls", "1", "7.000000000001"],
        ["old", "tokens", "4", "0.25", "1"],
    ]
    assert [e["event_id"] for e in data["usage"]] == ["new", "zero", "old"]
    assert data["usage"][0]["lines"][0]["unit_price_minor"] == "0.5"


def test_explain_says_that_there_are_more_events(shop: Shop, gullak: Gullak) -> None:
    entry = debit(shop)

    assert "these are the newest 2; --limit shows more" in (
        gullak("explain", entry.entry_id, "--limit", "2").out
    )
    assert "--limit shows more" not in gullak("explain", entry.entry_id).out


def test_the_command_goes_from_a_debit_to_its_events_and_back(shop: Shop, gullak: Gullak) -> None:
    entry = debit(shop)

    of_entry = gullak("events", "--entry", entry.entry_id, "--json").json
    one = gullak("events", "--event-id", "old").out
    of_other = gullak("events", "--customer", shop.customers[1], "--json").json

    assert [e["event_id"] for e in of_entry] == ["new", "zero", "old"]
    assert entry.entry_id in one
    assert [e["event_id"] for e in of_other] == ["other"]
