"""Packages, purchases, and payments that a business records, over HTTP."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest

from metering.ids import PurchaseId
from metering.payment.facts import PaymentFact, note_payment
from metering.purchase.settle import settle_purchase
from support.edge import Api
from support.tenant import Shop, at_once

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
Made = dict[str, Any]


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


def package(client: httpx.Client, **changes: object) -> Made:
    new = {"name": "Starter", "currency": "USD", "price": 1000, **changes}
    answer = client.post("/packages", json=new)
    assert answer.status_code == 201, answer.text
    return answer.json()  # type: ignore[no-any-return]


def orders(shop: Shop, customer: int = 0) -> str:
    return f"/customers/{shop.customers[customer]}/purchases"


def buy(client: httpx.Client, shop: Shop, **changes: object) -> str:
    """Order credit for 1000 cents; return the purchase's id."""
    new = {"currency": "USD", "price": 1000, **changes}
    answer = client.post(orders(shop), json=new)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def say(client: httpx.Client, purchase_id: str, what: str, **said: object) -> Made:
    answer = client.post(f"/purchases/{purchase_id}/{what}", json=said)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def bought(client: httpx.Client, shop: Shop, **changes: object) -> str:
    """Order credit, and say that it was paid."""
    purchase_id = buy(client, shop, **changes)
    say(client, purchase_id, "payments")
    return purchase_id


def refused(answer: httpx.Response) -> tuple[int, str, list[str]]:
    body = answer.json()
    return answer.status_code, body["code"], [detail["field"] for detail in body["details"]]


# --- packages -------------------------------------------------------------------------------------


def test_a_package_is_created_shown_and_archived(client: httpx.Client) -> None:
    made = package(client, credit=1100, valid_days=90, priority=20)

    shown = client.get(f"/packages/{made['id']}").json()
    archived = client.delete(f"/packages/{made['id']}")

    assert shown == made
    terms = {name: made[name] for name in ("price", "credit", "valid_days", "priority")}
    assert terms == {"price": 1000, "credit": 1100, "valid_days": 90, "priority": 20}
    assert (archived.status_code, archived.content) == (204, b"")
    assert client.get("/packages").json() == {"items": []}
    (kept,) = client.get("/packages", params={"archived": True}).json()["items"]
    assert kept["archived_at"] is not None


def test_packages_are_listed_newest_first_in_pages(client: httpx.Client) -> None:
    made = [package(client, name=name)["id"] for name in "abc"]

    def listed(**params: object) -> list[str]:
        answer = client.get("/packages", params=params)  # type: ignore[arg-type]
        return [item["id"] for item in answer.json()["items"]]

    assert listed(page_size=2) == [made[2], made[1]]
    assert listed(page_size=2, page_number=1) == [made[0]]
    assert listed(starting_after=made[1]) == [made[0]]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": " "}, "name"),
        ({"currency": "EUR"}, "currency"),
        ({"currency": "usd"}, "currency"),
        ({"price": 0}, "price"),
        ({"price": 9.5}, "price"),
        ({"credit": -1}, "credit"),
        ({"valid_days": 0}, "valid_days"),
        ({"valid_days": 36_501}, "valid_days"),
        ({"priority": 101}, "priority"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_package_is_refused_by_field(
    client: httpx.Client, changes: dict[str, object], field: str
) -> None:
    new = {"name": "Starter", "currency": "USD", "price": 1000, **changes}

    answer = client.post("/packages", json=new)

    assert (answer.status_code, answer.json()["details"][0]["field"]) == (422, field)
    assert client.get("/packages").json() == {"items": []}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_package_that_does_not_exist_is_not_found(client: httpx.Client, method: str) -> None:
    assert client.request(method, "/packages/pkg_none").status_code == 404


# --- orders ---------------------------------------------------------------------------------------


def test_a_new_purchase_is_pending_and_shows_the_metadata_for_its_payment(
    client: httpx.Client, shop: Shop
) -> None:
    sold = package(client, credit=1100, valid_days=90, priority=20)

    answer = client.post(orders(shop), json={"package_id": sold["id"], "order_id": "o-1"})

    made = answer.json()
    assert answer.status_code == 201
    assert (made["status"], made["order_id"], made["package_id"]) == ("pending", "o-1", sold["id"])
    assert (made["price"], made["credit"], made["valid_days"]) == (1000, 1100, 90)
    assert made["metadata"] == {"gullak_purchase_id": made["id"]}
    assert shop.wallet().balance_minor == 0


def test_a_repeated_order_returns_its_purchase_and_other_content_conflicts(
    client: httpx.Client, shop: Shop
) -> None:
    first = buy(client, shop, order_id="o-1")

    again = buy(client, shop, order_id="o-1")
    other = client.post(orders(shop), json={"currency": "USD", "price": 9, "order_id": "o-1"})

    assert again == first
    assert refused(other) == (409, "IDEMPOTENCY_CONFLICT", ["order_id"])
    assert other.headers["x-should-retry"] == "false"


def test_an_archived_package_cannot_be_bought(client: httpx.Client, shop: Shop) -> None:
    sold = package(client)
    client.delete(f"/packages/{sold['id']}")

    answer = client.post(orders(shop), json={"package_id": sold["id"]})

    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"currency": "USD"}, "body"),
        ({"package_id": "pkg_1", "price": 5}, "body"),
        ({"currency": "USD", "price": 1.5}, "price"),
        ({"currency": "USD", "price": 0}, "price"),
        ({"currency": "USD", "price": 5, "credit": "5"}, "credit"),
        ({"currency": "USD", "price": 5, "order_id": ""}, "order_id"),
        ({"currency": "EUR", "price": 5}, "currency"),
    ],
)
def test_a_bad_order_is_refused_by_field(
    client: httpx.Client, shop: Shop, body: dict[str, object], field: str
) -> None:
    answer = client.post(orders(shop), json=body)

    assert (answer.status_code, answer.json()["details"][0]["field"]) == (422, field)
    assert client.get("/purchases").json() == {"items": []}


def test_purchases_are_listed_by_customer_and_status_in_pages(
    client: httpx.Client, shop: Shop
) -> None:
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    first, second = buy(client, shop), bought(client, shop)
    answer = client.post(orders(shop, 1), json={"currency": "INR", "price": 5})
    third = answer.json()["id"]

    def listed(**params: object) -> list[str]:
        found = client.get("/purchases", params=params)  # type: ignore[arg-type]
        return [item["id"] for item in found.json()["items"]]

    assert listed() == [third, second, first]
    assert listed(customer_id=shop.customers[0]) == [second, first]
    assert listed(status="settled") == [second]
    assert listed(page_size=1, page_number=1) == [second]
    assert listed(starting_after=second) == [first]
    assert client.get("/purchases", params={"status": "gone"}).status_code == 422


# --- paid -----------------------------------------------------------------------------------------


def test_a_recorded_payment_is_credited_once(client: httpx.Client, shop: Shop) -> None:
    purchase_id = buy(client, shop, credit=1100, order_id="o-1")

    for _ in range(2):
        known = say(client, purchase_id, "payments")

    assert (known["status"], known["paid"], known["provider"]) == ("settled", 1000, "shop")
    assert [payment["payment_id"] for payment in known["payments"]] == ["o-1"]
    assert known["ledger_entry_id"] == shop.entries()[0].entry_id
    assert (shop.wallet().balance_minor, shop.faults()) == (1100, [])


def test_twenty_records_of_a_payment_at_once_credit_it_once(
    client: httpx.Client, shop: Shop
) -> None:
    path = f"/purchases/{buy(client, shop)}/payments"

    got = at_once(*[lambda: client.post(path, json={})] * 20)

    assert Counter(getattr(answer, "status_code", answer) for answer in got) == {200: 20}
    assert (shop.wallet().balance_minor, shop.faults()) == (1000, [])


def test_a_payment_that_is_too_small_is_shown_and_not_credited(
    client: httpx.Client, shop: Shop
) -> None:
    known = say(client, buy(client, shop), "payments", payment_id="p-1", amount=999)

    assert known["status"] == "pending"
    assert [payment["parked_reason"] for payment in known["payments"]] == ["underpaid"]
    assert shop.wallet().balance_minor == 0


def test_a_second_payment_is_shown_and_parked(client: httpx.Client, shop: Shop) -> None:
    purchase_id = bought(client, shop)

    known = say(client, purchase_id, "payments", payment_id="p-2")

    assert [payment["parked_reason"] for payment in known["payments"]] == [None, "paid_twice"]
    assert shop.wallet().balance_minor == 1000


@pytest.mark.parametrize("said", [{"payment_id": "p-1"}, {"payment_id": "p-1", "amount": 1001}])
def test_a_payment_id_with_other_content_is_a_conflict(
    client: httpx.Client, shop: Shop, said: dict[str, object]
) -> None:
    first, second = buy(client, shop), buy(client, shop)
    say(client, first, "payments", payment_id="p-1")
    target = second if "amount" not in said else first

    answer = client.post(f"/purchases/{target}/payments", json=said)

    assert refused(answer) == (409, "IDEMPOTENCY_CONFLICT", ["payment_id"])
    assert shop.wallet().balance_minor == 1000


def told(shop: Shop, purchase_id: str, amount: int) -> None:
    """A provider has told of a payment of so much, and it was settled."""
    fact = PaymentFact(
        provider="stripe",
        payment_id="pi_1",
        status="succeeded",
        amount_minor=amount,
        currency="USD",
        occurred_at=NOW,
        purchase_id=PurchaseId(purchase_id),
    )
    with shop.sessions.transaction() as conn:
        note_payment(conn, shop.business_id, fact)
        settle_purchase(conn, PurchaseId(purchase_id))


def test_a_payment_that_is_too_small_is_accepted_by_its_provider_id(
    client: httpx.Client, shop: Shop
) -> None:
    purchase_id = buy(client, shop)
    told(shop, purchase_id, 800)

    unnamed = client.post(f"/purchases/{purchase_id}/payments", json={})
    for _ in range(2):
        known = say(client, purchase_id, "payments", payment_id="pi_1")

    assert refused(unnamed) == (422, "INVALID_REQUEST_BODY", ["payment_id"])
    assert (known["status"], known["provider"], known["paid"]) == ("settled", "stripe", 800)
    assert [payment["parked_reason"] for payment in known["payments"]] == [None]
    half = say(client, purchase_id, "refunds", refund_id="r-1", amount=400)
    assert half["refunded"] == 500
    assert (shop.wallet().balance_minor, shop.faults()) == (500, [])


# --- taken back -----------------------------------------------------------------------------------


def test_refunds_reverse_their_shares_and_are_shown(client: httpx.Client, shop: Shop) -> None:
    purchase_id = bought(client, shop, credit=1100)

    part = say(client, purchase_id, "refunds", refund_id="r-1", amount=400)
    say(client, purchase_id, "refunds", refund_id="r-1", amount=400)
    rest = say(client, purchase_id, "refunds", refund_id="r-2", amount=600)

    assert (part["status"], part["refunded"]) == ("partially_reversed", 440)
    assert (rest["status"], rest["refunded"]) == ("reversed", 1100)
    assert [(each["id"], each["amount"]) for each in rest["reversals"]] == [
        ("r-1", 400),
        ("r-2", 600),
    ]
    assert (shop.wallet().balance_minor, shop.faults()) == (0, [])


def test_a_refund_without_an_amount_is_a_full_refund(client: httpx.Client, shop: Shop) -> None:
    known = say(client, bought(client, shop), "refunds", refund_id="r-1")

    assert (known["status"], known["reversals"][0]["amount"]) == ("reversed", None)


@pytest.mark.parametrize("said", [{"amount": 601}, {}], ids=["more", "all"])
def test_refunds_take_no_more_in_total_than_was_paid(
    client: httpx.Client, shop: Shop, said: dict[str, Any]
) -> None:
    purchase_id = bought(client, shop, credit=1100)
    say(client, purchase_id, "refunds", refund_id="r-1", amount=400)

    more = client.post(f"/purchases/{purchase_id}/refunds", json={"refund_id": "r-2", **said})

    assert refused(more) == (422, "INVALID_REQUEST_BODY", ["amount"])
    assert "600 of the 1000 that were paid are left to refund" in more.text
    known = client.get(f"/purchases/{purchase_id}").json()
    assert (known["refunded"], len(known["reversals"])) == (440, 1)
    assert say(client, purchase_id, "refunds", refund_id="r-1", amount=400)["refunded"] == 440
    rest = say(client, purchase_id, "refunds", refund_id="r-2", amount=600)
    assert (rest["refunded"], shop.wallet().balance_minor, shop.faults()) == (1100, 0, [])


def test_of_two_refunds_at_once_one_finds_nothing_left(client: httpx.Client, shop: Shop) -> None:
    path = f"/purchases/{bought(client, shop)}/refunds"

    def refund(name: str) -> int:
        return client.post(path, json={"refund_id": name, "amount": 600}).status_code

    found = at_once(partial(refund, "r-1"), partial(refund, "r-2"))

    assert set(found) == {200, 422}
    assert (shop.wallet().balance_minor, shop.faults()) == (400, [])


def test_an_open_dispute_freezes_credit_a_won_one_frees_it_and_a_lost_one_takes_it(
    client: httpx.Client, shop: Shop
) -> None:
    purchase_id = bought(client, shop)

    found = []
    for status in ("open", "won", "lost", "open"):
        known = say(client, purchase_id, "disputes", dispute_id="d-1", status=status)
        (lot,) = client.get(f"/customers/{shop.customers[0]}/wallets/lots").json()["items"]
        found.append((known["status"], known["lost"], lot["frozen"], lot["remaining"]))

    assert found == [
        ("disputed", 0, True, 1000),
        ("settled", 0, False, 1000),
        ("reversed", 1000, False, 0),
        # It has ended: to open it once more is late news.
        ("reversed", 1000, False, 0),
    ]
    assert shop.faults() == []


def test_a_refund_of_a_provider_payment_goes_to_that_payment(
    client: httpx.Client, shop: Shop
) -> None:
    purchase_id = PurchaseId(buy(client, shop))
    fact = PaymentFact(
        provider="stripe",
        payment_id="pi_1",
        status="succeeded",
        amount_minor=1000,
        currency="USD",
        occurred_at=NOW,
        purchase_id=purchase_id,
    )
    with shop.sessions.transaction() as conn:
        note_payment(conn, shop.business_id, fact)
        settle_purchase(conn, purchase_id)

    known = say(client, purchase_id, "refunds", refund_id="re_1", amount=250)

    (reversal,) = known["reversals"]
    assert (reversal["provider"], reversal["payment_id"]) == ("stripe", "pi_1")
    assert (known["status"], known["refunded"]) == ("partially_reversed", 250)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("refunds", {"refund_id": "r-1"}),
        ("disputes", {"dispute_id": "d-1", "status": "open"}),
    ],
)
def test_an_unpaid_purchase_is_neither_refunded_nor_disputed(
    client: httpx.Client, shop: Shop, what: str, said: dict[str, object]
) -> None:
    purchase_id = buy(client, shop)

    answer = client.post(f"/purchases/{purchase_id}/{what}", json=said)

    assert refused(answer) == (422, "INVALID_REQUEST_BODY", ["purchase_id"])
    assert client.get(f"/purchases/{purchase_id}").json()["reversals"] == []


@pytest.mark.parametrize(
    ("what", "said", "field"),
    [
        ("payments", {"amount": 0}, "amount"),
        ("payments", {"payment_id": " "}, "payment_id"),
        ("refunds", {"refund_id": "r-1", "amount": 1001}, "amount"),
        ("refunds", {"refund_id": "r-1", "amount": 1.0}, "amount"),
        ("refunds", {"amount": 5}, "refund_id"),
        ("refunds", {"refund_id": "a\0b"}, "refund_id"),
        ("disputes", {"dispute_id": "d-1", "status": "open", "amount": 1001}, "amount"),
        ("disputes", {"dispute_id": "d-1", "status": "pending"}, "status"),
        ("disputes", {"dispute_id": "d-1"}, "status"),
    ],
)
def test_a_bad_refund_or_dispute_is_refused_by_field_and_changes_nothing(
    client: httpx.Client, shop: Shop, what: str, said: dict[str, object], field: str
) -> None:
    purchase_id = bought(client, shop)
    before = client.get(f"/purchases/{purchase_id}").json()

    answer = client.post(f"/purchases/{purchase_id}/{what}", json=said)

    assert refused(answer) == (422, "INVALID_REQUEST_BODY", [field])
    assert client.get(f"/purchases/{purchase_id}").json() == before


@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        ("refunds", {"refund_id": "x", "amount": 5}, {"refund_id": "x", "amount": 6}),
        ("refunds", {"refund_id": "x", "amount": 5}, {"refund_id": "x"}),
        (
            "disputes",
            {"dispute_id": "x", "status": "open", "amount": 5},
            {"dispute_id": "x", "status": "lost", "amount": 6},
        ),
    ],
)
def test_an_id_with_another_amount_is_a_conflict_and_changes_nothing(
    client: httpx.Client,
    shop: Shop,
    what: str,
    first: dict[str, object],
    second: dict[str, object],
) -> None:
    purchase_id = bought(client, shop)
    before = say(client, purchase_id, what, **first)

    answer = client.post(f"/purchases/{purchase_id}/{what}", json=second)

    assert refused(answer) == (409, "IDEMPOTENCY_CONFLICT", [f"{what[:-1]}_id"])
    assert client.get(f"/purchases/{purchase_id}").json() == before


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("refunds", {"refund_id": "x"}),
        ("disputes", {"dispute_id": "x", "status": "lost"}),
    ],
)
def test_an_id_of_another_purchase_s_payment_is_a_conflict_and_changes_neither(
    client: httpx.Client, shop: Shop, what: str, said: dict[str, object]
) -> None:
    first, second = bought(client, shop), bought(client, shop)
    say(client, first, what, **said)

    answer = client.post(f"/purchases/{second}/{what}", json=said)

    assert refused(answer) == (409, "IDEMPOTENCY_CONFLICT", [f"{what[:-1]}_id"])
    assert client.get(f"/purchases/{second}").json()["status"] == "settled"
    assert (shop.wallet().balance_minor, shop.faults()) == (1000, [])


@pytest.mark.parametrize("what", ["", "/payments", "/refunds", "/disputes"])
def test_a_purchase_that_does_not_exist_is_not_found(client: httpx.Client, what: str) -> None:
    said = {
        "/payments": {},
        "/refunds": {"refund_id": "r"},
        "/disputes": {"dispute_id": "d", "status": "won"},
    }
    method = "POST" if what else "GET"

    answer = client.request(method, f"/purchases/pur_none{what}", json=said.get(what))

    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/packages"),
        ("DELETE", "/packages/{package}"),
        ("POST", "/customers/{customer}/purchases"),
        ("POST", "/purchases/{purchase}/payments"),
        ("POST", "/purchases/{purchase}/refunds"),
        ("POST", "/purchases/{purchase}/disputes"),
        ("PATCH", "/business"),
    ],
)
def test_every_change_needs_the_write_permission(
    api: Api, client: httpx.Client, shop: Shop, method: str, path: str
) -> None:
    ids = {
        "package": package(client)["id"],
        "purchase": buy(client, shop),
        "customer": shop.customers[0],
    }

    with api.client(api.key_for("read", "ingest")) as reader:
        answer = reader.request(method, path.format(**ids), json={})

    assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")


# --- the business ---------------------------------------------------------------------------------


def test_the_shortfall_is_shown_if_the_reversal_policy_stops_at_zero(
    client: httpx.Client, shop: Shop
) -> None:
    was = client.get("/business").json()
    now = client.patch("/business", json={"reversal_policy": "stop_at_zero"}).json()
    purchase_id = bought(client, shop)
    shop.enter(900, debit=True)

    known = say(client, purchase_id, "refunds", refund_id="r-1")

    assert (was["reversal_policy"], now["reversal_policy"]) == ("debt", "stop_at_zero")
    assert (was["business_id"], was["name"]) == (shop.business_id, "Acme")
    assert (known["refunded"], known["shortfall"]) == (1000, 900)
    assert (shop.wallet().balance_minor, shop.faults()) == (0, [])


def test_a_change_of_a_business_keeps_the_fields_that_are_not_given(client: httpx.Client) -> None:
    client.patch("/business", json={"reversal_policy": "stop_at_zero"})

    assert client.patch("/business", json={}).json()["reversal_policy"] == "stop_at_zero"


@pytest.mark.parametrize("body", [{"reversal_policy": "forgive"}, {"name": "Other"}])
def test_a_bad_change_of_a_business_is_refused_by_field(
    client: httpx.Client, body: dict[str, str]
) -> None:
    before = client.get("/business").json()

    answer = client.patch("/business", json=body)

    assert refused(answer) == (422, "INVALID_REQUEST_BODY", list(body))
    assert client.get("/business").json() == before
