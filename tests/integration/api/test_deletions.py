"""A second DELETE finds what a GET would find: the same again, or nothing."""

from collections.abc import Iterator

import httpx
import pytest

from metering.clock import to_wire, utc_now
from support.edge import Api, description
from support.one_of_each import one_of_each
from support.tenant import Shop, event

# What a DELETE leaves, with the call that shows it.
KEPT = {
    "/meters/{meter_id}": "/meters/{meter_id}",
    "/packages/{package_id}": "/packages/{package_id}",
    "/prices/{price_id}": "/prices",
    "/refused-events/{refusal_id}": "/refused-events?status=resolved",
    "/customers/{customer_id}/personal-data": "/customers/{customer_id}",
}
GONE = {
    "/low-credit-rules/{rule_id}",
    "/webhooks/{webhook_id}",
    "/customers/{customer_id}/wallets/{currency}/top-up",
}


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def client(module_api: Api) -> Iterator[httpx.Client]:
    with module_api.client() as opened:
        yield opened


def test_every_delete_is_of_one_of_the_two_kinds() -> None:
    paths = description()["paths"]

    assert {path for path, methods in paths.items() if "delete" in methods} == GONE | {*KEPT}


@pytest.mark.parametrize(("path", "shown"), KEPT.items())
def test_a_second_delete_of_what_stays_answers_as_the_first_and_changes_nothing(
    path: str, shown: str, client: httpx.Client, shop: Shop
) -> None:
    ids = one_of_each(shop, client)

    first = client.delete(path.format(**ids))
    left = client.get(shown.format(**ids)).json()
    second = client.delete(path.format(**ids))

    assert second.status_code == first.status_code < 300
    assert client.get(shown.format(**ids)).json() == left


@pytest.mark.parametrize("path", sorted(GONE))
def test_a_second_delete_of_what_is_gone_finds_nothing(
    path: str, client: httpx.Client, shop: Shop
) -> None:
    target = path.format(**one_of_each(shop, client))

    assert client.delete(target).status_code == 204
    assert client.get(target).status_code == 404
    assert client.delete(target).status_code == 404


def test_a_price_of_an_archived_meter_counts_from_its_first_event_in_use_again(
    client: httpx.Client, shop: Shop
) -> None:
    meter_id = shop.meter("tokens", {"USD": "1"}).meter_id
    client.delete(f"/meters/{meter_id}")
    new = {"meter_id": meter_id, "currency": "USD", "price_per_unit": "3"}

    made = client.post("/prices", json=new)
    client.post(f"/meters/{meter_id}/unarchive")
    shop.send(event(shop.customers[0], {"tokens": 2}, at=to_wire(utc_now())))
    shop.drain()

    assert made.status_code == 201
    assert shop.charged() == 6
