"""An entry shows which later entries give it or call it back, over HTTP and on the command line."""

from typing import Any

import httpx
import pytest

from support.command import Gullak
from support.edge import Api
from support.tenant import Shop
from worker.settings import Settings


@pytest.fixture
def gullak(
    config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Gullak:
    return Gullak.on(config, monkeypatch, capsys)


def reversed_by(client: httpx.Client, shop: Shop) -> dict[str, list[tuple[str, str, bool, int]]]:
    """The reversals of each entry of the customer, by the entry's id."""
    path = f"/customers/{shop.customers[0]}/wallets/ledger-entries"
    return {
        entry["id"]: [
            (each["id"], each["kind"], each["is_credit"], each["amount"])
            for each in entry["reversed_by"]
        ]
        for entry in client.get(path).json()["items"]
    }


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body)
    assert answer.is_success, answer.text
    return answer.json()


def test_a_refunded_debit_shows_its_refunds(api: Api, shop: Shop, gullak: Gullak) -> None:
    shop.enter(100)
    debit = shop.enter(60, debit=True).entry_id
    other = shop.enter(10, debit=True).entry_id
    path = f"/customers/{shop.customers[0]}/wallets/ledger-entries/{debit}/refunds"
    with api.client() as client:
        for amount in (20, 5):
            post(client, path, {"amount": amount})
        found = reversed_by(client, shop)
    second, first, *_ = shop.entries()

    assert found[debit] == [
        (first.entry_id, "refund", True, 20),
        (second.entry_id, "refund", True, 5),
    ]
    assert [found[each] for each in (other, first.entry_id)] == [[], []]
    explained = gullak("explain", debit, "--json").json["reversed_by"]
    assert [(each["entry_id"], each["amount_minor"]) for each in explained] == [
        (first.entry_id, 20),
        (second.entry_id, 5),
    ]
    assert f"{first.entry_id}  refund credit  20 (0.20 USD)" in gullak("explain", debit).out
    assert "reversed by" not in gullak("explain", other).out


def test_a_purchase_whose_dispute_is_won_shows_both_ways(
    api: Api, shop: Shop, gullak: Gullak
) -> None:
    with api.client() as client:
        orders = f"/customers/{shop.customers[0]}/purchases"
        purchase = post(client, orders, {"currency": "USD", "price": 100})["id"]
        post(client, f"/purchases/{purchase}/payments", {})
        post(client, f"/purchases/{purchase}/refunds", {"refund_id": "r", "amount": 30})
        for status in ("lost", "won"):
            dispute = {"dispute_id": "d", "status": status, "amount": 50}
            client.post(f"/purchases/{purchase}/disputes", json=dispute)
        found = reversed_by(client, shop)
    *later, bought = shop.entries()

    shown = [(each.entry_id, "reversal", each.is_credit, each.amount_minor) for each in later]
    assert found[bought.entry_id] == shown[::-1]
    assert len(shown) > 1
    assert all(found[each.entry_id] == [] for each in later)
    assert len(gullak("explain", bought.entry_id, "--json").json["reversed_by"]) == len(shown)


def test_an_entry_by_hand_that_names_another_one_reverses_nothing(api: Api, shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    debit = shop.enter(5).entry_id
    entry = {"amount": 1, "currency": "USD", "entry_type": "credit", "reference": debit}
    with api.client() as client:
        post(client, f"/customers/{shop.customers[1]}/wallets/ledger-entries", entry)

        assert reversed_by(client, shop)[debit] == []
