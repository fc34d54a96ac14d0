"""Errors for amounts, prices and currencies explain the right form."""

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from api.examples import BODIES
from api.reasons import AMOUNTS
from metering.field_problems import PLAIN
from support.edge import Api, description
from support.tenant import Shop

# Integers of requests that are no money.
COUNTS = {"declines_max", "priority", "units", "valid_days"}
DOCUMENT: dict[str, Any] = description()


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def client(module_api: Api) -> Iterator[httpx.Client]:
    with module_api.client() as opened:
        yield opened


def operations() -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Method, path, name and the properties of the body of every operation that takes one."""
    schemas = DOCUMENT["components"]["schemas"]
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                named = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)
                yield method, path, operation["operationId"], named.get("properties", {})


def is_integer(schema: Mapping[str, Any]) -> bool:
    return any(choice.get("type") == "integer" for choice in schema.get("anyOf", [schema]))


INTEGERS = [
    (method, path, name, field)
    for method, path, name, properties in operations()
    for field, schema in properties.items()
    if is_integer(schema)
]


def refused(client: httpx.Client, method: str, path: str, body: object) -> dict[str, str]:
    target = path.replace("{currency}", "USD")
    answer = client.request(method, target, json=body)
    assert answer.status_code == 422, answer.text
    return {detail["field"]: detail["reason"] for detail in answer.json()["details"]}


def test_every_integer_field_is_listed_as_money_or_as_a_count() -> None:
    assert {field for *_, field in INTEGERS} == AMOUNTS | COUNTS


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5.5, "5.50 USD is 550"),
        (5.0, "5.00 USD is 500"),
        ("5.50", "5.50 USD is 550"),
        ("5,50", "5.50 USD is 550"),
        ("550", "5.50 USD is 550"),
        (True, "5.50 USD is 550"),
        ([1], "5.50 USD is 550"),
        ("९.५", "5.50 USD is 550"),
    ],
)
def test_the_error_for_a_major_unit_amount_explains_minor_units(
    given: object, said: str, client: httpx.Client, shop: Shop
) -> None:
    path = f"/customers/{shop.customers[0]}/wallets/ledger-entries"
    body = {"amount": given, "currency": "USD", "entry_type": "credit"}

    reasons = refused(client, "post", path, body)

    assert reasons == {
        "amount": f"is in minor units (cents, paise): an integer, and no text; {said}"
    }


@pytest.mark.parametrize(
    ("method", "path", "name", "field"), [case for case in INTEGERS if case[-1] in AMOUNTS]
)
def test_the_error_of_every_amount_field_explains_minor_units(
    method: str, path: str, name: str, field: str, client: httpx.Client
) -> None:
    example = BODIES[name]
    assert isinstance(example, dict)

    reasons = refused(client, method, path, {**example, field: 12.34})

    assert "minor units (cents, paise)" in reasons[field]
    assert "12.34 USD is 1234" in reasons[field]


def test_a_parameter_with_the_name_of_an_amount_is_not_money(client: httpx.Client) -> None:
    answer = client.get("/webhooks", params={"limit": "5.5"})

    assert answer.status_code == 422
    assert "minor units" not in answer.json()["message"]


@pytest.mark.parametrize("given", ["0,03", "1e-2", "-0.03", ".03", "0.03 ", 0.03, 3, True, "३"])
def test_the_error_for_a_bad_price_shows_a_valid_one(given: object, client: httpx.Client) -> None:
    body = {"meter_id": "mtr_1", "currency": "USD", "price_per_unit": given}

    reasons = refused(client, "post", "/prices", body)

    assert list(reasons) == ["price_per_unit"]
    assert (
        'in minor units (cents, paise), as text with a decimal point, such as "0.03"'
        in (reasons["price_per_unit"])
    )


@pytest.mark.parametrize("given", ["usd", "US$", "dollars", 840, ""])
def test_the_error_for_a_bad_currency_shows_a_valid_one(
    given: object, client: httpx.Client
) -> None:
    reasons = refused(client, "post", "/low-credit-rules", {"currency": given, "threshold": 5})

    assert reasons == {"currency": "is the code of a currency in capital letters, such as USD"}


def patterns_in(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(pattern := node.get("pattern"), str):
            yield pattern
        for part in node.values():
            yield from patterns_in(part)
    elif isinstance(node, list):
        for part in node:
            yield from patterns_in(part)


def test_every_pattern_of_a_request_has_plain_words() -> None:
    # Those of a currency and of a price are explained by the names of their fields.
    explained = {*PLAIN, r"^[A-Z]{3}$", r"^[0-9]{1,5}(\.[0-9]{1,12})?$"}

    assert {*patterns_in(DOCUMENT)} - explained == set()


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_the_error_for_a_missing_content_type_names_it(
    kind: str | None, client: httpx.Client
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}

    answer = client.post("/customers", content=b'{"email": "a@b.c", "name": "x"}', headers=headers)

    assert (answer.status_code, answer.json()["message"]) == (
        422,
        "body: was not sent as JSON: add `Content-Type: application/json`",
    )


def test_the_error_for_invalid_json_gives_the_position(client: httpx.Client) -> None:
    answer = client.post(
        "/customers", content=b'{"email": "a@b.c",}', headers={"Content-Type": "application/json"}
    )

    (detail,) = answer.json()["details"]
    assert detail["field"] == "body"
    assert detail["reason"].startswith("is not JSON: ")
    assert detail["reason"].endswith(", character 18")


def test_our_own_reasons_have_no_prefix_of_pydantic(client: httpx.Client) -> None:
    answer = client.get("/customers", params={"created_at_gte": "2026-01-01"})

    assert answer.json()["message"].startswith("created_at_gte: is not RFC 3339")


@pytest.mark.parametrize("given", [0, 1, "yes", "false", []])
def test_a_boolean_field_accepts_only_true_and_false(given: object, client: httpx.Client) -> None:
    made = client.post("/webhooks", json={"url": "https://example.com/"}).json()

    for method, path in (("post", "/webhooks"), ("patch", f"/webhooks/{made['id']}")):
        body = {"url": "https://example.com/", "disabled": given}
        assert list(refused(client, method, path, body)) == ["disabled"]
    assert len(client.get("/webhooks").json()["data"]) == 1
