"""Quantities as programs send them: noise of doubles, properties that are absent."""

from collections.abc import Iterator
from decimal import Decimal

import httpx
import pytest

from metering.buffer.chunk import Metadata
from support.edge import Api
from support.tenant import NOW, Shop


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as opened:
        yield opened


def ingest(
    client: httpx.Client, shop: Shop, metadata: Metadata, event_id: str = "f-1"
) -> httpx.Response:
    event = {
        "event_id": event_id,
        "customer_id": shop.customers[0],
        "event_name": "llm.completion",
        "timestamp": NOW,
        "metadata": metadata,
    }
    return client.post("/events/ingest", json={"events": [event]})


def test_the_noise_of_a_double_is_rounded_at_the_twelfth_decimal(
    client: httpx.Client, shop: Shop
) -> None:
    shop.meter("spend", {"USD": "1"}, units=1)

    answer = ingest(client, shop, {"spend": 0.00022500000000000002})

    assert (answer.status_code, answer.json()) == (200, {"ingested_count": 1})
    assert (shop.drain().posted, shop.charged()) == (1, Decimal("0.000225"))


def test_a_property_that_is_absent_adds_nothing_and_the_others_are_charged(
    client: httpx.Client, shop: Shop
) -> None:
    for key, price in {"input_tokens": "2", "output_tokens": "3", "cached_tokens": "1"}.items():
        shop.meter(key, {"USD": price})

    answer = ingest(client, shop, {"input_tokens": 10, "output_tokens": 5})

    assert answer.status_code == 200, answer.text
    assert (shop.drain().posted, shop.charged()) == (1, 35)


def test_a_property_of_another_type_is_refused_with_its_name(
    client: httpx.Client, shop: Shop
) -> None:
    shop.meter("input_tokens", {"USD": "2"})

    ingest(client, shop, {"input_tokens": "ten"})
    shop.drain()

    (found,) = client.get("/refused-events").json()["items"]
    assert found["reason"] == "bad_quantity"
    assert found["detail"] == "property 'input_tokens' is 'ten': it is not a number"


def test_an_event_without_any_property_that_is_summed_is_a_dead_letter_that_names_them(
    client: httpx.Client, shop: Shop
) -> None:
    for key in ("input_tokens", "output_tokens"):
        shop.meter(key, {"USD": "2"})

    ingest(client, shop, {"inputTokens": 10})
    shop.drain()

    (found,) = client.get("/refused-events").json()["items"]
    assert found["reason"] == "bad_quantity"
    assert "'input_tokens', 'output_tokens'" in found["detail"]
