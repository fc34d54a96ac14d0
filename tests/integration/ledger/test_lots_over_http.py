"""Lots, allocations of entries, and refunds of debits, over HTTP."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.edge import Api
from support.tenant import Shop, at_once


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


def wallets(shop: Shop) -> str:
    return f"/customers/{shop.customers[0]}/wallets"


def lots(client: httpx.Client, shop: Shop, **wanted: object) -> list[dict[str, Any]]:
    answer = client.get(f"{wallets(shop)}/lots", params=wanted)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]  # type: ignore[no-any-return]


def allocations(client: httpx.Client, shop: Shop, entry_id: str) -> dict[str, Any]:
    answer = client.get(f"{wallets(shop)}/ledger-entries/{entry_id}/allocations")
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def refunds(shop: Shop, entry_id: str) -> str:
    return f"{wallets(shop)}/ledger-entries/{entry_id}/refunds"


def answers(results: list[httpx.Response | Exception]) -> list[httpx.Response]:
    assert not [result for result in results if isinstance(result, Exception)]
    return [result for result in results if isinstance(result, httpx.Response)]


# --- overdraft ------------------------------------------------------------------------------------


def test_a_wallet_may_be_overdrawn_up_to_its_limit(client: httpx.Client, shop: Shop) -> None:
    debit = {"amount": 50, "currency": "USD", "entry_type": "debit"}
    refused = client.post(f"{wallets(shop)}/ledger-entries", json=debit)

    changed = client.put(f"{wallets(shop)}/USD/overdraft", json={"limit": 50})
    taken = client.post(f"{wallets(shop)}/ledger-entries", json=debit)

    assert (refused.status_code, changed.status_code, taken.status_code) == (400, 200, 200)
    assert (changed.json()["overdraft_limit"], changed.json()["available_balance"]) == (50, 50)
    (usd, _) = client.get(wallets(shop)).json()["items"]
    assert (usd["balance"], usd["available_balance"], usd["overdraft_limit"]) == (-50, 0, 50)
    assert shop.faults() == []


@pytest.mark.parametrize("limit", [-1, 10**15 + 1, 1.5, "50", None])
def test_a_bad_limit_is_refused_and_changes_nothing(
    client: httpx.Client, shop: Shop, limit: object
) -> None:
    answer = client.put(f"{wallets(shop)}/USD/overdraft", json={"limit": limit})

    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST_BODY")
    assert shop.wallet().overdraft_limit_minor == 0


def test_a_limit_for_a_missing_wallet_is_refused(client: httpx.Client, shop: Shop) -> None:
    limit = {"limit": 50}

    assert client.put(f"{wallets(shop)}/EUR/overdraft", json=limit).status_code == 422
    path = "/customers/cus_none/wallets/USD/overdraft"
    assert client.put(path, json=limit).status_code == 404


# --- lots -----------------------------------------------------------------------------------------


def test_a_lot_is_shown_with_what_is_left_of_it(client: httpx.Client, shop: Shop) -> None:
    terms = {
        "expires_at": "2099-12-31T18:29:59Z",
        "source": "paid",
        "priority": 7,
        "cost_basis": 90,
    }
    credit = {"amount": 100, "currency": "USD", "entry_type": "credit", **terms}
    client.post(f"{wallets(shop)}/ledger-entries", json=credit)
    shop.enter(30, debit=True)

    (lot,) = lots(client, shop)

    assert lot["id"].startswith("lot_")
    assert lot.pop("created_at").endswith("Z")
    assert lot == {
        "id": lot["id"],
        "customer_id": shop.customers[0],
        "currency": "USD",
        "amount": 100,
        "remaining": 70,
        "frozen": False,
        "ledger_entry_id": shop.entries()[-1].entry_id,
        **terms,
    }


def test_the_newest_lot_is_first_and_pages_follow_each_other(
    client: httpx.Client, shop: Shop
) -> None:
    for amount in (1, 2, 3):
        shop.enter(amount)

    first = lots(client, shop, page_size=2)

    assert [lot["amount"] for lot in first] == [3, 2]
    assert [lot["amount"] for lot in lots(client, shop, page_size=2, page_number=1)] == [1]
    after = {"starting_after": first[-1]["id"]}
    assert [lot["amount"] for lot in lots(client, shop, **after)] == [1]


def test_lots_that_are_used_up_can_be_left_out_also_after_usage(
    client: httpx.Client, shop: Shop
) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.enter(100)
    shop.charge(100)
    shop.enter(50, currency="INR")

    assert [lot["currency"] for lot in lots(client, shop, only_left=True)] == ["INR"]
    assert [lot["remaining"] for lot in lots(client, shop)] == [50, 0]


def test_the_lots_of_one_currency_are_listed_alone(client: httpx.Client, shop: Shop) -> None:
    shop.enter(100)
    shop.enter(900, currency="INR")

    assert [lot["amount"] for lot in lots(client, shop, currency="INR")] == [900]


@pytest.mark.parametrize(
    ("customer", "params", "status"),
    [
        ("cus_nobody", {}, 404),
        ("cus_nobody", {"currency": "USD"}, 404),
        (None, {"currency": "EUR"}, 422),
        (None, {"page_size": 101}, 422),
        (None, {"only_left": "perhaps"}, 422),
    ],
)
def test_a_refused_list_of_lots_has_the_reason(
    client: httpx.Client, shop: Shop, customer: str | None, params: dict[str, str], status: int
) -> None:
    path = f"/customers/{customer or shop.customers[0]}/wallets/lots"

    answer = client.get(path, params=params)

    assert answer.status_code == status
    assert answer.json()["message"]


# --- allocations ----------------------------------------------------------------------------------


def test_the_allocations_of_usage_show_lots_and_debt(client: httpx.Client, shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.enter(100)
    shop.enter(50)
    newest, oldest = (lot["id"] for lot in lots(client, shop))
    shop.charge(180)

    found = allocations(client, shop, shop.entries()[0].entry_id)

    assert found == {
        "items": [
            {"lot_id": oldest, "source": "manual", "amount": 100},
            {"lot_id": newest, "source": "manual", "amount": 50},
        ],
        "unpaid": 30,
    }


def test_the_allocations_of_a_credit_show_its_lot(client: httpx.Client, shop: Shop) -> None:
    shop.enter(100)

    found = allocations(client, shop, shop.entries()[0].entry_id)

    (lot,) = lots(client, shop)
    assert found == {
        "items": [{"lot_id": lot["id"], "source": "manual", "amount": 100}],
        "unpaid": 0,
    }


def test_the_lots_of_an_entry_of_another_customer_are_not_found(
    client: httpx.Client, shop: Shop
) -> None:
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    entry_id = shop.enter(100, customer=1).entry_id

    answer = client.get(f"{wallets(shop)}/ledger-entries/{entry_id}/allocations")

    assert answer.status_code == 404


# --- refunds --------------------------------------------------------------------------------------


def test_a_refund_returns_the_wallet_and_its_allocations_show_the_lot(
    client: httpx.Client, shop: Shop
) -> None:
    shop.enter(100)
    debit = shop.enter(60, debit=True).entry_id

    answer = client.post(refunds(shop, debit), json={"amount": 20, "reason": "timed out"})

    assert (answer.status_code, answer.json()["balance"]) == (200, 60)
    entries = client.get(f"{wallets(shop)}/ledger-entries").json()["items"]
    shown = {name: entries[0][name] for name in ("kind", "reference_object_id", "reason")}
    assert shown == {"kind": "refund", "reference_object_id": debit, "reason": "timed out"}
    (lot,) = lots(client, shop)
    assert allocations(client, shop, entries[0]["id"])["items"] == [
        {"lot_id": lot["id"], "source": "manual", "amount": 20}
    ]


def test_a_refund_in_rupees_returns_the_wallet_in_rupees(client: httpx.Client, shop: Shop) -> None:
    shop.enter(100, currency="INR")
    debit = shop.enter(60, debit=True, currency="INR").entry_id

    answer = client.post(refunds(shop, debit), json={})

    assert (answer.json()["currency"], answer.json()["balance"]) == ("INR", 100)


def test_a_repeated_key_is_answered_and_other_content_is_a_conflict_without_retry(
    client: httpx.Client, shop: Shop
) -> None:
    shop.enter(100)
    path = refunds(shop, shop.enter(60, debit=True).entry_id)

    first, again, other = (
        client.post(path, json={"amount": amount, "idempotency_key": "k"})
        for amount in (20, 20, 21)
    )

    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json() == first.json()
    assert (other.status_code, other.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert other.headers["x-should-retry"] == "false"
    assert shop.wallet().balance_minor == 60


def test_twenty_equal_refunds_at_once_make_one_entry(client: httpx.Client, shop: Shop) -> None:
    shop.enter(100)
    path = refunds(shop, shop.enter(60, debit=True).entry_id)
    body = {"amount": 30, "idempotency_key": "k"}

    got = answers(at_once(*[lambda: client.post(path, json=body)] * 20))

    assert {answer.status_code for answer in got} == {200}
    assert Counter("idempotent-replayed" in answer.headers for answer in got) == {
        True: 19,
        False: 1,
    }
    assert (shop.wallet().balance_minor, shop.faults()) == (70, [])


def test_twenty_full_refunds_at_once_give_the_credit_back_once(
    client: httpx.Client, shop: Shop
) -> None:
    shop.enter(100)
    path = refunds(shop, shop.enter(60, debit=True).entry_id)

    got = answers(at_once(*[lambda: client.post(path, json={})] * 20))

    assert Counter(answer.status_code for answer in got) == {200: 1, 422: 19}
    assert (shop.wallet().balance_minor, shop.faults()) == (100, [])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"amount": 61}, "amount"),
        ({"amount": 0}, "amount"),
        ({"amount": 1.5}, "amount"),
        ({"amount": "5"}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": 2**63}, "amount"),
        ({"reason": "a\0b"}, "reason"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"currency": "USD"}, "currency"),
    ],
)
def test_a_refund_that_is_refused_names_the_field_and_changes_nothing(
    client: httpx.Client, shop: Shop, body: dict[str, object], field: str
) -> None:
    shop.enter(100)
    debit = shop.enter(60, debit=True).entry_id

    answer = client.post(refunds(shop, debit), json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST_BODY")
    assert [detail["field"] for detail in answer.json()["details"]] == [field]
    assert shop.wallet().version == 2


def test_a_credit_is_not_refunded(client: httpx.Client, shop: Shop) -> None:
    entry_id = shop.enter(100).entry_id

    answer = client.post(refunds(shop, entry_id), json={})

    assert answer.status_code == 422
    assert answer.json()["details"][0]["field"] == "entry_id"


def test_an_entry_that_does_not_exist_is_not_refunded(client: httpx.Client, shop: Shop) -> None:
    assert client.post(refunds(shop, "ent_none"), json={}).status_code == 404


def test_a_refund_needs_the_write_permission(api: Api, shop: Shop) -> None:
    shop.enter(100)
    debit = shop.enter(60, debit=True).entry_id

    with api.client(api.key_for("read")) as reader:
        answer = reader.post(refunds(shop, debit), json={})

    assert (answer.status_code, shop.wallet().balance_minor) == (403, 40)
