"""Requests at the same time: one effect per idempotency key, exact sums, no cent spent twice."""

import random
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from support.edge import Api
from support.tenant import Shop, at_once


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as opened:
        yield opened


def entries_of(shop: Shop) -> str:
    return f"/customers/{shop.customers[0]}/wallets/ledger-entries"


def answers(results: list[httpx.Response | Exception]) -> list[httpx.Response]:
    assert not [result for result in results if isinstance(result, Exception)]
    return [result for result in results if isinstance(result, httpx.Response)]


def test_fifty_posts_with_one_key_write_one_entry_and_get_equal_responses(
    client: httpx.Client, shop: Shop
) -> None:
    entry = {"amount": 7, "currency": "USD", "entry_type": "credit", "idempotency_key": "order-1"}

    got = answers(at_once(*[lambda: client.post(entries_of(shop), json=entry)] * 50))

    assert {answer.status_code for answer in got} == {200}
    assert len({answer.text for answer in got}) == 1
    assert Counter("idempotent-replayed" in answer.headers for answer in got) == {
        True: 49,
        False: 1,
    }
    assert [entry.amount_minor for entry in shop.entries()] == [7]


def test_only_one_of_two_debits_gets_the_last_cent(client: httpx.Client, shop: Shop) -> None:
    shop.enter(1)
    debit = {"amount": 1, "currency": "USD", "entry_type": "debit"}

    got = answers(at_once(*[lambda: client.post(entries_of(shop), json=debit)] * 2))

    assert sorted(answer.status_code for answer in got) == [200, 400]
    assert shop.wallet().balance_minor == 0


def test_many_credits_and_debits_at_once_add_up_exactly(client: httpx.Client, shop: Shop) -> None:
    shop.enter(1_000_000)
    amounts = [random.Random(thread).choices(range(-99, 100), k=10) for thread in range(16)]  # noqa: S311

    def storm(mine: list[int]) -> list[httpx.Response]:
        return [
            client.post(
                entries_of(shop),
                json={
                    "amount": abs(amount) or 1,
                    "currency": "USD",
                    "entry_type": "credit" if amount > 0 else "debit",
                },
            )
            for amount in mine
        ]

    at_once(*[lambda mine=mine: storm(mine) for mine in amounts])

    moved = sum(amount or -1 for mine in amounts for amount in mine)
    assert shop.wallet().balance_minor == 1_000_000 + moved
    assert shop.wallet().version == 161
    assert shop.faults() == []
