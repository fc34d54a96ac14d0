"""Quantities over HTTP: rounding errors of doubles, and absent properties."""

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


def test_a_double_is_rounded_to_twelve_decimals(client: httpx.Client, shop: Shop) -> None:
    shop.meter("spend", {"USD": "1"}, units=1)

    answer = ingest(client, shop, {"spend": 0.00022500000000000002})

    assert (answer.status_code, answer.json()) == (200, {"ingested_count": 1})
    assert (shop.drain().posted, shop.charged()) == (1, Decimal("0.000225"))


def test_an_absent_property_adds_nothing(client: httpx.Client, shop: Shop) -> None:
    for key, price in {"input_tokens": "2", "output_tokens": "3", "cached_tokens": "1"}.items():
        shop.meter(key, {"USD": price})

    answer = ingest(client, shop, {"input_tokens": 10, "output_tokens": 5})

    assert answer.status_code == 200, answer.text
    assert (shop.drain().posted, shop.charged()) == (1, 35)


def test_a_text_in_a_summed_property_is_refused_with_its_name(
    client: httpx.Client, shop: Shop
) -> None:
    shop.meter("input_tokens", {"USD": "2"})

    ingest(client, shop, {"input_tokens": "ten"})
    shop.drain()

    (found,) = client.get("/refused-events").json()["items"]
    assert found["reason"] == "bad_quantity"
    assert found["detail"] == "property 'input_tokens' is 'ten': it is not a number"


def test_an_event_without_any_summed_property_is_refused_with_their_names(
    client: httpx.Client, shop: Shop
) -> None:
    for key in ("input_tokens", "output_tokens"):
        shop.meter(key, {"USD": "2"})

    ingest(client, shop, {"inputTokens": 10})
    shop.drain()

    (found,) = client.get("/refused-events").json()["items"]
    assert found["reason"] == "bad_quantity"
    assert "'input_tokens', 'output_tokens'" in found["detail"]
