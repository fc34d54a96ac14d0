"""Every example in the OpenAPI description is accepted as it is."""

import json
import re
from collections.abc import Iterator, Mapping

import httpx
import pytest

from api import examples
from support.edge import Api, description
from support.one_of_each import one_of_each
from support.providers import Stripe
from support.tenant import Shop


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def client(module_api: Api) -> Iterator[httpx.Client]:
    with module_api.client() as opened:
        yield opened


def operations() -> list[tuple[str, str, str]]:
    """Method, path and example of every operation that takes a body."""
    paths = description()["paths"]
    return [
        (
            method.upper(),
            path,
            json.dumps(operation["requestBody"]["content"]["application/json"]["example"]),
        )
        for path, methods in paths.items()
        for method, operation in methods.items()
        # The unit tests of the description find an operation without an example.
        if "example"
        in operation.get("requestBody", {"content": {}})["content"].get("application/json", {})
    ]


def with_ids(text: str, ids: Mapping[str, str]) -> str:
    """Put real ids in the place of the shown ones: whole, as "17" can be a part of a new id."""
    names = {shown: name for name, shown in examples.IDS.items()}
    pattern = "|".join(rf"\b{re.escape(shown)}\b" for shown in names)
    return re.sub(pattern, lambda found: ids[names[found[0]]], text)


@pytest.mark.parametrize(("method", "path", "body"), operations())
def test_the_example_of_an_operation_is_accepted(
    method: str, path: str, body: str, client: httpx.Client, shop: Shop
) -> None:
    ids = one_of_each(shop, client)
    ids["event_id"] = ids["refused_event_id"]
    sent, headers = with_ids(body, ids), {"Content-Type": "application/json"}
    if path.endswith("/page"):  # the page of a purchase that is not paid yet
        order = {"package_id": ids["package_id"]}
        ordered = client.post(f"/customers/{ids['customer_id']}/purchases", json=order)
        ids["purchase_id"] = ordered.json()["id"]
    if path.startswith("/providers/"):
        (account,) = shop.rows(
            "SELECT account_id FROM provider_accounts WHERE webhook_secret IS NOT NULL"
            f" AND business_id = '{shop.business_id}'"
        )
        path = f"/providers/stripe/webhooks?account={account[0]}"
        headers |= Stripe().signed(sent.encode()).headers

    answer = client.request(method, path.format(**ids), content=sent, headers=headers)

    assert answer.is_success, answer.text
    assert answer.headers.get("Idempotent-Replayed") is None
    for name in ("ingested_count", "replayed_count"):
        assert answer.content == b"" or answer.json().get(name, 1) > 0
