"""Every mistake of a client is refused, by an error that names it in plain words, once."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
from dodopayments import DodoPayments

from metering.ledger.businesses import create_business
from support.edge import Api, description
from worker.session import Sessions, make_engine
from worker.settings import settings_from

DOCUMENT: dict[str, Any] = description()


@pytest.fixture(scope="module")
def client(module_api_url: str, module_database_url: str) -> Iterator[httpx.Client]:
    """A client of one business for all tests."""
    engine = make_engine(settings_from({"DATABASE_URL": module_database_url}))
    sessions = Sessions(engine)
    with sessions.transaction() as conn:
        business_id = create_business(conn, "Acme")
    with Api.open(module_api_url, sessions, business_id).client() as opened:
        yield opened
    engine.dispose()


def operations() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Method, path and description of every operation that needs a key."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            if operation.get("security"):
                yield method, path, operation


def query_names(operation: Mapping[str, Any]) -> list[str]:
    return [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"]


OPERATIONS = [(method, path, query_names(operation)) for method, path, operation in operations()]
PARAMETERS = [(method, path, name) for method, path, names in OPERATIONS for name in names]


def asked(client: httpx.Client, method: str, path: str, query: str) -> httpx.Response:
    return client.request(method, re.sub(r"{\w+}", "x", path) + query)


# --- query parameters -----------------------------------------------------------------------------


def test_nearly_all_operations_need_a_key() -> None:
    assert len(OPERATIONS) > 55


@pytest.mark.parametrize(("method", "path", "known"), OPERATIONS)
def test_an_unknown_query_parameter_is_refused_by_name(
    method: str, path: str, known: list[str], client: httpx.Client
) -> None:
    answer = asked(client, method, path, "?form=2026-01-01")

    said = f"known are {', '.join(sorted(known))}" if known else "none is known"
    assert answer.status_code == 422
    assert answer.json()["code"] == "INVALID_QUERY_PARAMS"
    assert answer.json()["details"] == [{"field": "form", "reason": f"is unknown here; {said}"}]


@pytest.mark.parametrize(("method", "path", "name"), PARAMETERS)
def test_a_query_parameter_that_is_given_twice_is_refused(
    method: str, path: str, name: str, client: httpx.Client
) -> None:
    answer = asked(client, method, path, f"?{name}=1&{name}=2")

    assert answer.status_code == 422
    assert answer.json()["code"] == "INVALID_QUERY_PARAMS"
    assert answer.json()["details"] == [{"field": name, "reason": "is given twice"}]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("get", path) for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs")),
        ("post", "/providers/stripe/webhooks"),
    ],
)
def test_probes_and_providers_may_add_parameters(
    method: str, path: str, client: httpx.Client
) -> None:
    plain, with_more = (client.request(method, path + more) for more in ("", "?probe=1"))

    assert with_more.status_code == plain.status_code != 422


@pytest.mark.parametrize("name", ["%00", "%0a", "%ff", "x" * 5000, ""])
def test_any_name_of_a_parameter_can_be_refused(name: str, client: httpx.Client) -> None:
    answer = client.get(f"/customers?{name}=1")

    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_QUERY_PARAMS")
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("resource", "call", "path"),
    [
        ("customers", "list", "/customers"),
        ("customers.wallets", "list", "/customers/{customer_id}/wallets"),
        (
            "customers.wallets.ledger_entries",
            "list",
            "/customers/{customer_id}/wallets/ledger-entries",
        ),
        ("usage_events", "list", "/events"),
        ("usage_events", "retrieve", "/events/{event_id}"),
        ("meters", "list", "/meters"),
        ("meters", "retrieve", "/meters/{meter_id}"),
        ("webhooks", "list", "/webhooks"),
        ("webhooks", "retrieve", "/webhooks/{webhook_id}"),
    ],
)
def test_each_parameter_of_the_vendors_sdk_is_known(resource: str, call: str, path: str) -> None:
    found: Any = DodoPayments(bearer_token="none", base_url="http://127.0.0.1")
    for part in resource.split("."):
        found = getattr(found, part)
    options = {"extra_headers", "extra_query", "extra_body", "timeout"}
    sent = {*inspect.signature(getattr(found, call)).parameters} - options
    ids = {"id", "customer_id", "event_id", "webhook_id"} if "{" in path else set()

    assert sent - ids <= {*query_names(DOCUMENT["paths"][path]["get"])}


# --- bodies ---------------------------------------------------------------------------------------

Json = Any
WRONG: list[Json] = [
    None,
    True,
    7,
    1.5,
    "",
    " ",
    "x\0",
    "\ud800",
    "x" * 3000,
    [],
    [[]],
    {},
    {"a b": {}},
]
# pydantic's words for what it does inside.
INTERNAL = re.compile(
    r"function-|literal\[|constrained|\[key\]|list\[|\(conditions|\(filters|match pattern|instance"
)
BODIES = [
    (method, path, operation["requestBody"]["content"]["application/json"]["example"])
    for method, path, operation in operations()
    if "requestBody" in operation
]
HEADERS = {"Content-Type": "application/json"}


def mutated(body: Json) -> Iterator[Json]:
    """The body with each of its parts in turn replaced by each wrong value."""
    yield from WRONG
    parts = body.items() if isinstance(body, dict) else enumerate(body)
    for at, part in [*parts]:
        inside = mutated(part) if isinstance(part, dict | list) else WRONG
        for wrong in inside:
            changed = body.copy()
            changed[at] = wrong
            yield changed
    if isinstance(body, dict):
        yield {**body, "unknown [key]": 1}


def is_in(body: Json, field: str) -> bool:
    """Tell whether a path such as `filter.clauses[0].key` is in the body."""
    return any(path == field for path in paths_in(body, ""))


def paths_in(body: Json, path: str) -> Iterator[str]:
    yield path.removeprefix(".")
    if isinstance(body, dict):
        for name, part in body.items():
            text = name if name.isprintable() else ascii(name)
            yield from paths_in(part, f"{path}.{text}")
    elif isinstance(body, list):
        for at, part in enumerate(body):
            yield from paths_in(part, f"{path}[{at}]")


@pytest.mark.parametrize(("method", "path", "example"), BODIES, ids=[path for _, path, _ in BODIES])
def test_a_wrong_body_is_refused_by_the_names_of_its_own_fields(
    method: str, path: str, example: Json, client: httpx.Client
) -> None:
    refused, target = 0, re.sub(r"{\w+}", "x", path)
    for body in mutated(example):
        content = json.dumps(body)
        answer = client.request(method, target, content=content, headers=HEADERS)
        assert answer.status_code < 500, (body, answer.text)
        if answer.status_code not in {400, 422}:
            continue
        refused += 1
        details = answer.json()["details"]
        fields = [detail["field"] for detail in details]

        assert details
        assert INTERNAL.search(answer.text.replace("unknown [key]", "")) is None
        assert len({*fields}) == len(fields)
        for field, reason in ((detail["field"], detail["reason"]) for detail in details):
            parent = field.rpartition(".")[0]
            is_missing = reason in {"Field required", "is missing"} and is_in(body, parent)
            assert is_missing or field == "body" or is_in(body, field), (body, answer.text)
    assert refused > len(WRONG) / 2


def with_a_key_twice(body: Json) -> Iterator[tuple[str, str]]:
    """The body as JSON with each of its keys given twice, and the path of that key."""
    for path in [*paths_in(body, "")]:
        if path and not path.endswith("]"):
            yield path, doubled(body, path, "")


def doubled(body: Json, wanted: str, path: str) -> str:
    if isinstance(body, dict):
        pairs = []
        for name, part in body.items():
            inner = f"{path}.{name}".removeprefix(".")
            pair = f"{json.dumps(name)}:{doubled(part, wanted, inner)}"
            pairs += [pair, pair] if inner == wanted else [pair]
        return "{" + ",".join(pairs) + "}"
    if isinstance(body, list):
        parts = (doubled(part, wanted, f"{path}[{at}]") for at, part in enumerate(body))
        return "[" + ",".join(parts) + "]"
    return json.dumps(body)


@pytest.mark.parametrize(("method", "path", "example"), BODIES, ids=[path for _, path, _ in BODIES])
def test_a_key_that_is_given_twice_is_refused_by_name(
    method: str, path: str, example: Json, client: httpx.Client
) -> None:
    target = re.sub(r"{\w+}", "x", path)

    for key, text in with_a_key_twice(example):
        answer = client.request(method, target, content=text, headers=HEADERS)

        assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST_BODY")
        assert answer.json()["details"] == [{"field": key, "reason": "is given twice"}]


@pytest.mark.parametrize(
    ("content", "headers", "status", "field"),
    [
        (b'{"email": ', {}, 422, "body"),
        (b'{"email": "\xff"}', {}, 422, "body"),
        (b"[" * 100_000, {}, 422, "body"),
        (b"", {}, 422, "body"),
        (b"{}", {"Content-Type": "text/plain"}, 422, "body"),
        (b" " * (1 << 24), {}, 413, "body"),
        (b"{}", {"Content-Encoding": "br"}, 415, "Content-Encoding"),
        (b"{}", {"Content-Encoding": "gzip"}, 422, "body"),
    ],
)
def test_the_error_of_a_body_that_cannot_be_read_names_the_body_or_the_header(
    content: bytes, headers: dict[str, str], status: int, field: str, client: httpx.Client
) -> None:
    answer = client.post("/customers", content=content, headers=HEADERS | headers)

    assert answer.status_code == status
    assert [detail["field"] for detail in answer.json()["details"]] == [field]


@pytest.fixture(scope="module")
def entries(client: httpx.Client) -> str:
    """The path of a customer's ledger entries; there is one with the idempotency key `used`."""
    made = client.post("/customers", json={"email": "a@example.com", "name": "Ann"}).json()
    path = f"/customers/{made['customer_id']}/wallets/ledger-entries"
    assert client.post(path, json=ENTRY | {"idempotency_key": "used"}).is_success
    endpoint = {"url": "https://example.com/", "idempotency_key": "used"}
    assert client.post("/webhooks", json=endpoint).is_success
    return path


ENTRY = {"amount": 5, "currency": "USD", "entry_type": "credit"}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (ENTRY | {"amount": 2**63 - 1}, 422, "amount"),
        (ENTRY | {"amount": 6, "entry_type": "debit"}, 400, "amount"),
        (ENTRY | {"amount": 6, "idempotency_key": "used"}, 409, "idempotency_key"),
    ],
)
def test_the_error_of_an_entry_that_does_not_fit_names_its_field(
    body: Json, status: int, field: str, client: httpx.Client, entries: str
) -> None:
    answer = client.post(entries, json=body)

    assert answer.status_code == status
    assert answer.json()["details"] == [{"field": field, "reason": answer.json()["message"]}]


def test_the_error_of_an_endpoint_whose_key_was_used_names_the_key(
    client: httpx.Client, entries: str
) -> None:
    del entries  # it used the key

    answer = client.post(
        "/webhooks", json={"url": "https://example.com/other", "idempotency_key": "used"}
    )

    assert answer.status_code == 409
    assert [detail["field"] for detail in answer.json()["details"]] == ["idempotency_key"]


def test_the_error_of_an_event_that_is_too_old_says_the_age_in_days(client: httpx.Client) -> None:
    event = {"event_id": "e", "customer_id": "c", "event_name": "n"}
    old = {"events": [event | {"timestamp": "2020-01-01T00:00:00Z"}]}

    answer = client.post("/events/ingest", json=old)

    assert answer.json()["details"] == [
        {"field": "events[0].timestamp", "reason": "is too old: more than 35 days ago"}
    ]
