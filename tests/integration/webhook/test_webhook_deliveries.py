"""Deliveries over HTTP and by a command: their states, and why they do not arrive."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from werkzeug import Response

from metering.ids import EndpointId
from support.command import Gullak
from support.edge import Api, running_api
from support.webhook_receiver import Bench
from worker.settings import Settings

pytest_plugins = ("support.webhook_fixtures",)

NOWHERE = "http://127.0.0.1:1/hook"
METADATA_SERVICE = "http://169.254.169.254/latest"


@pytest.fixture
def client(config: Settings, bench: Bench) -> Iterator[httpx.Client]:
    with running_api(config) as url:
        api = Api(url, bench.sessions, bench.business_id, "")
        with api.client(api.key_for()) as opened:
            yield opened


@pytest.fixture
def gullak(
    config: Settings,
    bench: Bench,  # noqa: ARG001 - the only business need not be named
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Gullak:
    return Gullak.on(config, monkeypatch, capsys)


def deliveries(client: httpx.Client, endpoint_id: str, **params: str | int) -> list[dict[str, Any]]:
    answer = client.get(f"/webhooks/{endpoint_id}/deliveries", params=params)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


def one_in_each_state(bench: Bench) -> tuple[EndpointId, dict[str, str]]:
    """Make a delivery in each state at one endpoint; return their ids by state."""
    made, inbox = bench.receiver()
    ids: dict[str, str] = {}
    inbox.answers(204)
    (ids["delivered"],) = bench.publish()
    bench.deliver()
    inbox.answers(500)
    (ids["dead"],) = bench.publish()
    for _ in range(3):
        bench.make_due()
        bench.deliver(disable_after=1000)
    (ids["failing"],) = bench.publish()
    bench.deliver(disable_after=1000)
    (ids["waiting"],) = bench.publish()
    return made.endpoint_id, ids


# --- lists ----------------------------------------------------------------------------------------


def test_deliveries_are_listed_newest_first_with_their_state(
    client: httpx.Client, bench: Bench
) -> None:
    endpoint_id, ids = one_in_each_state(bench)

    found = deliveries(client, endpoint_id)

    assert [d["id"] for d in found] == [
        ids["waiting"],
        ids["failing"],
        ids["dead"],
        ids["delivered"],
    ]
    assert [(d["status"], d["attempts"], d["last_status_code"]) for d in found] == [
        ("pending", 0, None),
        ("pending", 1, 500),
        ("dead", 3, 500),
        ("delivered", 1, 204),
    ]
    assert [d["last_error"] for d in found] == [None, "answered 500", "answered 500", None]
    assert [d["next_attempt_at"] is None for d in found] == [False, False, True, True]
    assert [d["last_attempt_at"] is None for d in found] == [True, False, False, False]
    assert {d["type"] for d in found} == {"credit.added"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("pending", ["waiting", "failing"]),
        ("failing", ["failing"]),
        ("dead", ["dead"]),
        ("delivered", ["delivered"]),
        ("undelivered", ["waiting", "failing", "dead"]),
    ],
)
def test_deliveries_of_one_state_are_listed_over_http_and_by_a_command(
    status: str, expected: list[str], client: httpx.Client, bench: Bench, gullak: Gullak
) -> None:
    endpoint_id, ids = one_in_each_state(bench)
    wanted = [ids[name] for name in expected]

    listed = gullak("webhook", "list", "--endpoint", endpoint_id, "--status", status, "--json").json

    assert [d["id"] for d in deliveries(client, endpoint_id, status=status)] == wanted
    assert [d["webhook_event_id"] for d in listed] == wanted


def test_a_delivery_without_an_answer_has_the_reason(
    client: httpx.Client, bench: Bench, gullak: Gullak
) -> None:
    made, _ = bench.receiver(url=NOWHERE)
    bench.publish()
    bench.deliver()

    (found,) = deliveries(client, made.endpoint_id, status="failing")
    shown = client.get(f"/webhooks/{made.endpoint_id}").json()

    assert found["last_error"] == "the connection was refused or failed"
    assert found["last_status_code"] is None
    assert (shown["failures_in_row"], shown["failing_since"] is None) == (1, False)
    assert "the connection was refused or failed" in gullak("webhook", "list").out


def test_an_error_response_is_shown_without_its_body(
    client: httpx.Client, bench: Bench, gullak: Gullak
) -> None:
    made, inbox = bench.receiver()
    inbox.script = [lambda: Response("of the receiver: hunter2", status=307)]
    bench.publish()
    bench.deliver()

    (found,) = deliveries(client, made.endpoint_id)
    listed = gullak("webhook", "list")

    assert found["last_status_code"] == 307
    assert found["last_error"] == "answered 307: redirects are not followed"
    assert found["last_error"] in listed.out
    assert "hunter2" not in listed.out


def test_a_replay_starts_the_attempts_again(client: httpx.Client, bench: Bench) -> None:
    endpoint_id, ids = one_in_each_state(bench)
    client.post(f"/webhooks/{endpoint_id}/replay", json={"since": "2020-01-01T00:00:00Z"})
    again = deliveries(client, endpoint_id)
    bench.deliver(disable_after=1000)

    assert {d["id"]: d["attempts"] for d in again} == dict.fromkeys(ids.values(), 0)
    assert {d["attempts"] for d in deliveries(client, endpoint_id)} <= {0, 1}


def test_pages_of_deliveries_have_no_gap_and_no_overlap(client: httpx.Client, bench: Bench) -> None:
    made, _ = bench.receiver()
    # Ids from one millisecond have no order.
    ids = sorted(bench.publish(7), reverse=True)

    by_number = [
        d["id"]
        for page in range(3)
        for d in deliveries(client, made.endpoint_id, page_size=3, page_number=page)
    ]
    after = deliveries(client, made.endpoint_id, page_size=3, starting_after=ids[2])

    assert by_number == ids
    assert [d["id"] for d in after] == ids[3:6]


def test_the_list_of_all_endpoints_is_merged_newest_first(bench: Bench, gullak: Gullak) -> None:
    bench.receiver(), bench.receiver()
    ids = sorted(bench.publish(2))

    listed = gullak("webhook", "list", "--json", "--limit", "3").json

    assert [d["webhook_event_id"] for d in listed] == [ids[1], ids[1], ids[0]]


def test_deliveries_of_another_business_are_not_found(client: httpx.Client, bench: Bench) -> None:
    other = bench.new_business()
    theirs, _ = bench.receiver(business_id=other)
    ours, _ = bench.receiver()
    (their_event,) = bench.publish(business_id=other)
    bench.publish()

    assert client.get(f"/webhooks/{theirs.endpoint_id}/deliveries").status_code == 404
    assert client.post(f"/webhooks/{theirs.endpoint_id}/test").status_code == 404
    cursor = client.get(
        f"/webhooks/{ours.endpoint_id}/deliveries", params={"starting_after": their_event}
    )
    assert cursor.status_code == 404


# --- a test ---------------------------------------------------------------------------------------


def test_a_test_webhook_goes_to_the_named_endpoint_in_spite_of_its_filter(
    client: httpx.Client, bench: Bench, gullak: Gullak
) -> None:
    named, inbox = bench.receiver(filter_types=["credit.balance_low"])
    _, other = bench.receiver()

    over_http = client.post(f"/webhooks/{named.endpoint_id}/test").json()["id"]
    by_command = gullak.made("endpoint", "test", named.endpoint_id)
    bench.deliver()

    assert sorted(inbox.ids) == sorted([over_http, by_command])
    assert all(b'"data":{"payload_type":"Test"}' in body for body in inbox.bodies)
    assert other.ids == []


# --- forbidden receivers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", [NOWHERE, METADATA_SERVICE, "http://localhost:9999/", "http://[::1]"]
)
def test_a_forbidden_receiver_is_refused_at_once(url: str, client: httpx.Client) -> None:
    made = client.post("/webhooks", json={"url": "https://example.com/"}).json()

    answers = [
        client.post("/webhooks", json={"url": url}),
        client.patch(f"/webhooks/{made['id']}", json={"url": url}),
    ]

    for answer in answers:
        assert (answer.status_code, answer.json()["details"][0]["field"]) == (422, "url")
        assert "GULLAK_WEBHOOK_ALLOW_LOOPBACK" in answer.json()["message"]
    assert client.get(f"/webhooks/{made['id']}").json()["url"] == "https://example.com/"
    assert len(client.get("/webhooks").json()["data"]) == 1


@pytest.mark.parametrize(
    ("allowed", "statuses"),
    [("webhook_allow_loopback", [200, 422]), ("webhook_allow_private", [200, 200])],
)
def test_a_receiver_that_the_operator_allows_is_accepted(
    allowed: str, statuses: list[int], config: Settings, bench: Bench
) -> None:
    with running_api(config.model_copy(update={allowed: True})) as url:
        api = Api(url, bench.sessions, bench.business_id, "")
        with replace(api, key=api.key_for()).client() as client:
            answers = [
                client.post("/webhooks", json={"url": url}) for url in (NOWHERE, METADATA_SERVICE)
            ]

    assert [answer.status_code for answer in answers] == statuses


def test_the_command_warns_about_a_forbidden_receiver(
    gullak: Gullak, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned = gullak("endpoint", "create", NOWHERE)
    monkeypatch.setenv("GULLAK_WEBHOOK_ALLOW_LOOPBACK", "true")
    allowed = gullak("endpoint", "create", NOWHERE)

    assert (warned.code, allowed.code) == (0, 0)
    assert warned.err.startswith(f"gullak: warning: {NOWHERE} is not a public address")
    assert allowed.err == ""
