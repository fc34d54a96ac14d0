"""A trailing slash changes nothing, and causes no redirect to another scheme or host."""

import re
from collections.abc import Iterator
from typing import Final

import httpx
import pytest

from support.edge import Api, description
from support.tenant import Shop, event

# The headers of a proxy that ends TLS.
BEHIND_TLS: Final = {"Host": "billing.example.com", "X-Forwarded-Proto": "https"}
UNLIKE: Final = {"request_id": None}


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def api(module_api: Api) -> Api:
    return module_api


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as opened:
        opened.headers.update(BEHIND_TLS)
        yield opened


def operations() -> list[tuple[str, str]]:
    paths = description()["paths"]
    return [
        (method.upper(), path)
        for path, found in sorted(paths.items())
        for method in found
        # Event ids may end in a slash: see below. Counters change between two calls.
        if path not in {"/events/{event_id}", "/metrics"}
    ]


@pytest.mark.parametrize(("method", "path"), [*operations(), ("GET", "/docs")])
def test_a_trailing_slash_does_not_change_the_response(
    method: str, path: str, client: httpx.Client
) -> None:
    target = re.sub(r"\{currency\}", "USD", path).replace("{provider}", "stripe")
    target = re.sub(r"\{\w+\}", "no-such-id", target)
    # No route accepts this body, so that nothing is made twice.
    body = b"[]" if method in {"POST", "PUT", "PATCH"} else b""

    without = client.request(method, target, content=body)
    with_slash = client.request(method, f"{target}/", content=body)

    assert with_slash.status_code == without.status_code
    assert with_slash.status_code not in {301, 302, 303, 307, 308, 405}
    if without.headers.get("content-type") == "application/json":
        assert with_slash.json() | UNLIKE == without.json() | UNLIKE


@pytest.mark.parametrize("path", ["/customers//", "///", "//evil.example/", "/no-such-route/"])
def test_unknown_paths_are_not_found_and_not_redirected(
    path: str, client: httpx.Client, api: Api
) -> None:
    answer = client.get(f"{api.url}{path}")

    assert (answer.status_code, "location" in answer.headers) == (404, False)


def test_events_are_accepted_and_listed_with_a_trailing_slash(
    client: httpx.Client, shop: Shop
) -> None:
    sent = {"event_id": "slash", "customer_id": shop.customers[0], "event_name": "e"}

    taken = client.post("/events/ingest/", json={"events": [sent]})

    assert taken.json() == {"ingested_count": 1}
    assert client.get("/events/").json() == client.get("/events").json()


def test_an_event_id_keeps_its_trailing_slash(client: httpx.Client, shop: Shop) -> None:
    shop.send(event(shop.customers[0], event_id="orders/7/"))

    assert client.get("/events/orders/7/").json()["event_id"] == "orders/7/"
    assert client.get("/events/orders/7").status_code == 404
