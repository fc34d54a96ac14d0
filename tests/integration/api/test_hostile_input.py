"""Hostile input gets a clear 4xx, never a 5xx, and changes nothing."""

import json
from collections.abc import Iterator

import httpx
import pytest

from support.edge import Api
from support.tenant import Shop

ENTRY = {"amount": 1, "currency": "USD", "entry_type": "credit"}
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def api(module_api: Api) -> Api:
    return module_api


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as opened:
        yield opened


def state(shop: Shop) -> list[object]:
    tables = ("customers", "wallets", "ledger_entries", "meters", "prices", "low_credit_rules")
    return [
        *(shop.rows(f"SELECT * FROM {table} ORDER BY 1") for table in tables),
        shop.buffer.backlog().events,
    ]


def entry(**changed: object) -> str:
    return json.dumps({**ENTRY, **changed})


@pytest.mark.parametrize("path", ["/customers", "/meters", "/prices", "/events/ingest", "entries"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe{}",
        b'{"email": "\xff", "name": "x"}',
        DEEP.encode(),
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"amount": ' + b"9" * 5000 + b"}",
        b'{"unknown": 1}',
        b'{"events": {}}',
        b'{"events": [1]}',
        b'{"events": [' + DEEP.encode() + b"]}",
        b'{"email": "\\ud800", "name": "x"}',
        b'{"email": "\\u0000", "name": "x"}',
        b'{"\\ud800": 1}',
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_a_body_of_the_wrong_form_is_refused(
    path: str, body: bytes, client: httpx.Client, shop: Shop
) -> None:
    before = state(shop)
    target = f"/customers/{shop.customers[0]}/wallets/ledger-entries" if path == "entries" else path

    answer = client.post(target, content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 422
    assert answer.json()["details"] or answer.json()["message"]
    assert state(shop) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("amount", 1.5),
        ("amount", "5"),
        ("amount", True),
        ("amount", 0),
        ("amount", -1),
        ("amount", 2**63),
        ("amount", 1e308),
        ("amount", None),
        ("currency", "usd"),
        ("currency", "EUR"),
        ("currency", "USD'; DROP TABLE wallets; --"),
        ("currency", "U\0D"),
        ("entry_type", "gift"),
        ("idempotency_key", ""),
        ("idempotency_key", "x" * 256),
        ("idempotency_key", "a\0b"),
        ("reason", "x" * 501),
        ("reason", "a\0b"),
        ("metadata", {"a b": 1}),
        ("metadata", {"a": "x" * 501}),
        ("metadata", {"a": [1]}),
        ("metadata", {"a": "\0"}),
        ("unknown", 1),
    ],
)
def test_a_bad_field_of_an_entry_is_named(
    field: str, value: object, client: httpx.Client, shop: Shop
) -> None:
    before = state(shop)
    path = f"/customers/{shop.customers[0]}/wallets/ledger-entries"

    answer = client.post(
        path, content=entry(**{field: value}), headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == 422
    assert any(detail["field"].startswith(field) for detail in answer.json()["details"])
    assert state(shop) == before


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_outside_of_json_are_refused(text: str, client: httpx.Client, shop: Shop) -> None:
    before = state(shop)
    body = entry(metadata={"a": 0}).replace('"a": 0', f'"a": {text}')

    answer = client.post(
        f"/customers/{shop.customers[0]}/wallets/ledger-entries",
        content=body,
        headers={"Content-Type": "application/json"},
    )

    assert answer.status_code == 422
    assert state(shop) == before


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE customers; --", "\\'", "%s", ":name", "$1", "%(x)s"]
)
def test_sql_in_a_text_is_stored_as_text(text: str, client: httpx.Client) -> None:
    made = client.post("/customers", json={"email": text, "name": text})

    found = client.get("/customers", params={"name": text}).json()["items"]

    assert made.status_code == 200
    assert [customer["name"] for customer in found] == [text]


def test_nul_in_the_customer_of_a_rule_is_refused(client: httpx.Client) -> None:
    body = {"currency": "USD", "threshold": 5, "customer_id": "cus_\0"}

    answer = client.post("/low-credit-rules", json=body)

    assert answer.status_code == 422
    assert answer.json()["details"][0]["field"] == "customer_id"


def test_a_text_is_not_accepted_as_a_number(client: httpx.Client) -> None:
    body = {"email": "a@example.com", "name": "A", "metadata": {"long": "0" * 501}}

    answer = client.post("/customers", json=body)

    assert answer.status_code == 422


@pytest.mark.parametrize("moment", ["0", "1767225600", "2026-01-01", "2026-01-01T00:00Z"])
def test_an_ambiguous_time_is_refused(moment: str, client: httpx.Client) -> None:
    assert client.get(f"/customers?created_at_gte={moment}").status_code == 422


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/customers", "GET, POST"),
        ("/webhooks/whk_1", "DELETE, GET, PATCH"),
        ("/events/ingest", "POST"),
    ],
)
def test_an_unsupported_method_gets_the_list_of_all_methods(
    path: str, allowed: str, client: httpx.Client
) -> None:
    answer = client.put(path)

    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize("path", ["/customers/%00", "/meters/a%00b", "/low-credit-rules/%00"])
def test_nul_in_a_path_is_not_found(path: str, client: httpx.Client) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        "page_size=0",
        "page_size=101",
        "page_number=-1",
        "page_number=1e9",
        "page_number=99999999999999999999",
        "name=%00",
        "created_at_gte=yesterday",
        "created_at_gte=2026-01-01T00:00:00",
    ],
)
def test_a_bad_query_is_refused(query: str, client: httpx.Client) -> None:
    answer = client.get(f"/customers?{query}")

    assert answer.status_code == 422


def test_a_huge_body_is_refused_without_reading_it(client: httpx.Client, shop: Shop) -> None:
    before = state(shop)

    answer = client.post("/events/ingest", content=b"x" * 100_000_000)

    assert answer.status_code == 413
    assert answer.json()["code"] == "PAYLOAD_TOO_LARGE"
    assert state(shop) == before


def test_a_huge_body_of_unknown_length_is_refused(client: httpx.Client, shop: Shop) -> None:
    before = state(shop)

    answer = client.post("/events/ingest", content=(b"x" * 1_000_000 for _ in range(20)))

    assert answer.status_code == 413
    assert state(shop) == before


def test_every_response_carries_the_given_or_a_new_request_id(client: httpx.Client) -> None:
    given = client.get("/customers", headers={"x-request-id": "abc-1"})
    made = client.get("/no-such-route")

    assert given.headers["x-request-id"] == "abc-1"
    assert made.json()["request_id"] == made.headers["x-request-id"]
    assert made.status_code == 404
