"""Refused events end: mended by good content under the same id, replayed, or dismissed."""

from collections.abc import Iterator
from time import monotonic

import httpx
import pytest

from metering.buffer.chunk import BufferedEvent
from metering.usage.balance_of_events import read_balance
from metering.usage.refused import mark_mended
from support.command import Gullak
from support.edge import Api
from support.tenant import Shop, event
from worker.settings import Settings


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
def shop(shop: Shop) -> Shop:
    """A business that charges a cent per token."""
    shop.meter("tokens", {"USD": "1"})
    return shop


def bad(shop: Shop, event_id: str = "e-1") -> BufferedEvent:
    return event(shop.customers[0], {"tokens": "many"}, event_id=event_id)


def good(shop: Shop, event_id: str = "e-1") -> BufferedEvent:
    return event(shop.customers[0], {"tokens": 7}, event_id=event_id)


def send(shop: Shop, *events: BufferedEvent) -> None:
    shop.send(*events)
    shop.drain()


def dead_letters(
    client: httpx.Client, status: str = "waiting"
) -> list[tuple[str, str, str | None]]:
    answer = client.get("/refused-events", params={"status": status})
    assert answer.status_code == 200, answer.text
    return [
        (item["event_id"], item["reason"], item["resolution"]) for item in answer.json()["items"]
    ]


def sweep(shop: Shop) -> int:
    return mark_mended(shop.sessions.transaction, monotonic() + 30)


def difference(shop: Shop) -> int:
    return read_balance(shop.sessions.snapshot, shop.buffer).difference


def test_good_content_under_the_same_id_removes_a_dead_letter_from_the_list(
    client: httpx.Client, gullak: Gullak, shop: Shop
) -> None:
    send(shop, bad(shop))
    before = dead_letters(client)

    send(shop, good(shop))

    assert before == [("e-1", "bad_quantity", None)]
    assert (shop.charged(), dead_letters(client), gullak("refused", "--json").json) == (7, [], [])
    assert sweep(shop) == 1
    assert dead_letters(client, "resolved") == [("e-1", "bad_quantity", "mended")]
    ((found,), resolved) = (
        gullak("refused", "--resolved", "--json").json,
        gullak("refused", "--resolved"),
    )
    assert found["resolution"] == "mended"
    assert "mended" in resolved.out
    assert difference(shop) == 0


@pytest.mark.parametrize("is_swept", [False, True])
def test_a_replay_leaves_out_mended_dead_letters(
    client: httpx.Client, shop: Shop, *, is_swept: bool
) -> None:
    send(shop, bad(shop))
    send(shop, good(shop))
    if is_swept:
        sweep(shop)

    replayed = client.post("/refused-events/replay", json={})

    assert replayed.json()["replayed_count"] == 0
    assert dead_letters(client) == []


def test_a_dead_letter_that_is_mended_during_its_replay_stays_mended(
    client: httpx.Client, shop: Shop
) -> None:
    send(shop, bad(shop))
    shop.send(good(shop))
    client.post("/refused-events/replay", json={})

    shop.drain()

    assert (shop.charged(), dead_letters(client), difference(shop)) == (7, [], 0)
    assert sweep(shop) == 1


@pytest.mark.parametrize("in_one_batch", [False, True])
def test_repeated_bad_content_of_a_mended_event_is_a_duplicate(
    client: httpx.Client, shop: Shop, *, in_one_batch: bool
) -> None:
    for one in (bad(shop), good(shop), bad(shop)):
        shop.send(one)
        if not in_one_batch:
            shop.drain()
            sweep(shop)
    shop.drain()

    assert dead_letters(client) == []
    assert (shop.charged(), difference(shop)) == (7, 0)


def test_bad_content_after_good_content_is_a_conflict_and_waits(
    client: httpx.Client, shop: Shop
) -> None:
    send(shop, good(shop))
    send(shop, bad(shop))

    assert dead_letters(client) == [("e-1", "conflict", None)]
    assert sweep(shop) == 0


@pytest.mark.parametrize("is_good_first", [False, True])
def test_bad_and_good_content_in_one_batch_charge_once_and_leave_nothing_waiting(
    client: httpx.Client, shop: Shop, *, is_good_first: bool
) -> None:
    for one in (good(shop), bad(shop)) if is_good_first else (bad(shop), good(shop)):
        shop.send(one)
    shop.drain()

    assert (shop.charged(), dead_letters(client), sweep(shop)) == (7, [], 1)


def test_a_dead_letter_is_dismissed_over_http_with_a_reason(
    client: httpx.Client, shop: Shop
) -> None:
    send(shop, bad(shop), bad(shop, "e-2"))
    items = {item["event_id"]: item["id"] for item in client.get("/refused-events").json()["items"]}

    answers = [
        client.delete(f"/refused-events/{items['e-1']}", params={"reason": "a test"})
        for _ in range(2)
    ]

    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["resolution_note"] == "a test"
    assert dead_letters(client) == [("e-2", "bad_quantity", None)]
    assert dead_letters(client, "resolved") == [("e-1", "bad_quantity", "dismissed")]
    assert client.get("/events/e-1").json()["status"] == "refused"
    assert client.post("/refused-events/replay", json={}).json()["replayed_count"] == 1
    shop.drain()
    assert difference(shop) == 0


def test_a_repeated_dismissed_event_stays_dismissed(client: httpx.Client, shop: Shop) -> None:
    send(shop, bad(shop))
    client.delete(f"/refused-events/{client.get('/refused-events').json()['items'][0]['id']}")

    shop.send(bad(shop))
    outcome = shop.drain()

    assert (outcome.duplicate, outcome.refused, dead_letters(client)) == (1, 0, [])
    assert difference(shop) == 0


def test_a_dead_letter_of_another_business_cannot_be_dismissed(
    client: httpx.Client, shop: Shop
) -> None:
    other = Shop.open(shop.sessions, shop.buffer, name="Other")
    send(other, event("cus_nobody", event_id="theirs"))
    ((number,),) = shop.rows("SELECT refusal_id FROM refused_events")

    assert client.delete(f"/refused-events/{number}").status_code == 404
    assert shop.rows("SELECT count(*) FROM refused_events WHERE replayed_at IS NULL") == [(1,)]


@pytest.mark.parametrize("number", ["x", "9" * 30, "12345"])
def test_a_number_without_a_dead_letter_is_not_found(client: httpx.Client, number: str) -> None:
    assert client.delete(f"/refused-events/{number}").status_code == 404


def test_the_command_dismisses_the_named_dead_letters(gullak: Gullak, shop: Shop) -> None:
    send(shop, bad(shop), bad(shop, "e-2"), event("cus_nobody", event_id="e-3"))
    send(shop, event("cus_nobody", event_id="e-4"))
    numbers = {one["event_id"]: one["refusal_id"] for one in gullak("refused", "--json").json}

    counts = [
        gullak("refused", "dismiss", *which, "--reason=of a test").out
        for which in ([str(numbers["e-1"])], ["--event-id=e-2"], ["--refused-for=unknown_customer"])
    ]
    nothing = gullak("refused", "dismiss", "--reason=x")

    assert counts == ["1 dismissed\n", "1 dismissed\n", "2 dismissed\n"]
    assert (nothing.code, gullak("refused", "--json").json) == (1, [])
    over = gullak("refused", "--resolved", "--json").json
    assert {one["resolution_note"] for one in over} == {"of a test"}
    assert gullak("verify").code == 0
