"""Checkouts and top-up rules over HTTP."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from support.checkout_driver import CheckoutDriver, Provider, unavailable
from support.edge import Api, running_api
from support.tenant import Shop, at_once
from worker.settings import settings_from


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture(scope="module")
def provider() -> Provider:
    return Provider()


@pytest.fixture(scope="module")
def charging_api_url(module_database_url: str, servers: Any, provider: Provider) -> Iterator[str]:
    """An API that charges through the provider of this module."""
    urls = {"DATABASE_URL": module_database_url, "REDIS_URL": servers.credentials.redis_url}
    with running_api(settings_from(urls), provider) as url:
        yield url


@pytest.fixture
def driver(shop: Shop, provider: Provider) -> Iterator[CheckoutDriver]:
    yield CheckoutDriver(shop, provider)
    provider.before = lambda _call: None


@pytest.fixture
def api(charging_api_url: str, shop: Shop) -> Api:
    bare = Api(charging_api_url, shop.sessions, shop.business_id, "")
    return replace(bare, key=bare.key_for())


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as opened:
        yield opened


def check_out(client: httpx.Client, driver: CheckoutDriver, **changes: object) -> httpx.Response:
    body = {"amount": 1000, "currency": "USD", "idempotency_key": "k1", "payment_method": "ok"}
    return client.post(f"/customers/{driver.shop.customers[0]}/checkouts", json={**body, **changes})


def details(answer: httpx.Response) -> dict[str, str]:
    return {detail["field"]: detail["reason"] for detail in answer.json()["details"]}


# --- checkouts ------------------------------------------------------------------------------------


def test_a_checkout_is_paid_by_credit_and_by_a_payment(
    client: httpx.Client, shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)

    answer = check_out(client, driver)

    made = answer.json()
    assert answer.status_code == 200
    assert (made["status"], made["credit_part"], made["payment_part"]) == ("completed", 300, 700)
    assert (made["payment_url"], made["failure"]) == (None, None)
    assert made["payment_id"] in {paid.payment_id for paid in driver.provider.payments.values()}
    assert client.get(f"/checkouts/{made['id']}").json() == made
    assert shop.faults() == []


def test_a_customer_pays_on_a_page(client: httpx.Client, driver: CheckoutDriver) -> None:
    answer = check_out(client, driver, payment_method=None, return_url="https://shop.example/r")

    assert answer.json()["status"] == "pending"
    assert answer.json()["payment_url"].startswith("https://pay.example/pay_")


# --- purchases that are paid on a page ------------------------------------------------------------


def order(client: httpx.Client, driver: CheckoutDriver) -> str:
    body = {"currency": "USD", "price": 1000, "credit": 1200}
    path = f"/customers/{driver.shop.customers[0]}/purchases"
    return str(client.post(path, json=body).json()["id"])


def open_page(client: httpx.Client, purchase_id: str, **body: object) -> dict[str, Any]:
    answer = client.post(f"/purchases/{purchase_id}/page", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def test_a_purchase_is_paid_on_a_page_and_credited(
    client: httpx.Client, shop: Shop, driver: CheckoutDriver
) -> None:
    purchase_id = order(client, driver)
    assert client.get(f"/purchases/{purchase_id}").json()["payment_url"] is None

    opened = open_page(client, purchase_id, return_url="https://shop.example/r")
    again = open_page(client, purchase_id)

    assert opened["payment_url"].startswith("https://pay.example/pay_")
    assert (opened["status"], again["payment_url"]) == ("pending", opened["payment_url"])
    assert len(driver.charge_ids()) == 1
    driver.provider.end(driver.charge().charge_id, "succeeded")
    driver.age(driver.charge().charge_id, 0)
    driver.sweep()
    paid = client.get(f"/purchases/{purchase_id}").json()
    assert (paid["status"], paid["provider"], paid["payment_url"]) == ("settled", "stripe", None)
    assert (shop.wallet().balance_minor, shop.faults()) == (1200, [])


def test_a_page_can_be_paid_after_a_declined_card(
    client: httpx.Client, shop: Shop, driver: CheckoutDriver
) -> None:
    purchase_id = order(client, driver)
    url = open_page(client, purchase_id)["payment_url"]

    driver.report(driver.charge().charge_id, "failed", payment_id="pay_declined")

    pending = client.get(f"/purchases/{purchase_id}").json()
    assert (pending["status"], pending["payment_url"]) == ("pending", url)
    driver.report(driver.charge().charge_id)
    assert client.get(f"/purchases/{purchase_id}").json()["status"] == "settled"
    assert driver.charge().status == "succeeded"
    assert driver.notices("purchase.failed") == []
    assert shop.faults() == []


def test_an_expired_page_fails_its_purchase_and_sends_a_webhook(
    client: httpx.Client, shop: Shop, driver: CheckoutDriver
) -> None:
    purchase_id = order(client, driver)
    open_page(client, purchase_id)

    driver.provider.end(driver.charge().charge_id, "failed")
    driver.age(driver.charge().charge_id, 0)
    driver.sweep()

    failed = client.get(f"/purchases/{purchase_id}").json()
    assert (failed["status"], failed["failure"], failed["payment_url"]) == (
        "failed", "card_declined", None,
    )  # fmt: skip
    (notice,) = driver.notices("purchase.failed")
    assert (notice["purchase_id"], notice["failure"]) == (purchase_id, "card_declined")
    refused = client.post(f"/purchases/{purchase_id}/page", json={})
    assert (refused.status_code, details(refused)) == (
        422, {"purchase": "is failed and has no page: make a new order"},
    )  # fmt: skip
    assert shop.faults() == []


def test_requests_at_once_open_one_page(client: httpx.Client, driver: CheckoutDriver) -> None:
    purchase_id = order(client, driver)

    at_once(*[lambda: client.post(f"/purchases/{purchase_id}/page", json={})] * 8)

    assert len(driver.charge_ids()) == 1
    assert len([1 for paid in driver.provider.payments if paid in driver.charge_ids()]) == 1


def test_no_page_is_opened_for_a_paid_purchase(
    client: httpx.Client, driver: CheckoutDriver
) -> None:
    purchase_id = order(client, driver)
    client.post(f"/purchases/{purchase_id}/payments", json={})

    assert client.post(f"/purchases/{purchase_id}/page", json={}).status_code == 422
    assert driver.charge_ids() == []


# --- webhooks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "credit", "end"),
    [
        ("ok", 300, ("checkout.completed", None)),
        ("ok", 1000, ("checkout.completed", None)),
        ("declined", 300, ("checkout.failed", "card_declined")),
        ("pending", 300, ("checkout.expired", "cancelled")),
    ],
)
def test_the_end_of_a_checkout_sends_one_webhook(
    client: httpx.Client,
    driver: CheckoutDriver,
    method: str,
    credit: int,
    end: tuple[str, str | None],
) -> None:
    shop, (type_, failure) = driver.shop, end
    shop.enter(credit)
    made = check_out(client, driver, payment_method=method).json()
    if method == "pending":
        driver.expire(made["id"])
    for _ in range(2):
        driver.sweep()

    (notice,) = driver.notices(type_)
    assert (notice["checkout_id"], notice["failure"]) == (made["id"], failure)
    assert (notice["amount"], notice["credit_part"]) == (1000, credit)
    ends = ("checkout.completed", "checkout.failed", "checkout.expired")
    assert sum(len(driver.notices(each)) for each in ends) == 1
    assert shop.faults() == []


def test_a_declined_checkout_is_returned_with_the_reason(
    client: httpx.Client, shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)

    answer = check_out(client, driver, payment_method="declined")

    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["failure"]) == ("failed", "card_declined")
    assert shop.wallet().balance_minor == 300


def test_a_checkout_stays_pending_without_the_provider_until_the_sweep(
    client: httpx.Client, shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)

    answer = check_out(client, driver, payment_method="hangs")

    assert (answer.status_code, answer.json()["status"]) == (200, "pending")
    driver.age(driver.charge().charge_id, 0)
    driver.sweep()
    assert client.get(f"/checkouts/{answer.json()['id']}").json()["status"] == "completed"
    assert shop.faults() == []


def test_a_repeated_request_is_marked_and_returns_the_current_checkout(
    client: httpx.Client, driver: CheckoutDriver
) -> None:
    driver.provider.before = unavailable
    first = check_out(client, driver)
    driver.provider.before = lambda _call: None
    driver.age(driver.charge().charge_id, 0)

    second = check_out(client, driver)

    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert first.json()["id"] == second.json()["id"]
    assert (first.json()["status"], second.json()["status"]) == ("pending", "completed")


def test_other_content_for_a_key_is_a_conflict_without_retry(
    client: httpx.Client, driver: CheckoutDriver
) -> None:
    check_out(client, driver)

    answer = check_out(client, driver, amount=1001)

    assert (answer.status_code, answer.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert answer.headers["x-should-retry"] == "false"


def test_twenty_equal_requests_at_once_make_one_checkout(
    client: httpx.Client, shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)

    answers = at_once(*[lambda: check_out(client, driver)] * 20)

    good = [answer for answer in answers if isinstance(answer, httpx.Response)]
    assert [answer.status_code for answer in good] == [200] * 20
    assert len({answer.json()["id"] for answer in good}) == 1
    charge = driver.charge()
    assert driver.charge_ids() == [charge.charge_id]
    assert charge.status == "succeeded"
    assert [entry.kind for entry in shop.entries()] == ["checkout", "manual"]
    assert shop.faults() == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"amount": 0}, "amount"),
        ({"amount": 1.5}, "amount"),
        ({"amount": "5"}, "amount"),
        ({"amount": True}, "amount"),
        ({"currency": "EUR"}, "currency"),
        ({"idempotency_key": " "}, "idempotency_key"),
        ({"return_url": "javascript:alert(1)"}, "return_url"),
        ({"payment_method": ""}, "payment_method"),
        ({"credit": 5}, "credit"),
    ],
)
def test_a_bad_field_is_named_and_changes_nothing(
    client: httpx.Client, shop: Shop, driver: CheckoutDriver, changes: dict[str, object], field: str
) -> None:
    shop.enter(300)

    answer = check_out(client, driver, **changes)

    assert answer.status_code == 422
    assert field in details(answer)
    assert shop.wallet().balance_minor == 300


def test_a_checkout_without_an_idempotency_key_is_refused(
    client: httpx.Client, driver: CheckoutDriver
) -> None:
    answer = client.post(
        f"/customers/{driver.shop.customers[0]}/checkouts", json={"amount": 1, "currency": "USD"}
    )

    assert details(answer) == {"idempotency_key": "Field required"}


def test_the_error_says_that_no_provider_account_is_connected(
    client: httpx.Client, shop: Shop, driver: CheckoutDriver
) -> None:
    driver._change("UPDATE provider_accounts SET disabled_at = now() WHERE business_id = :id",
                 shop.business_id)  # fmt: skip

    answer = check_out(client, driver)

    assert details(answer) == {"account_id": "there are 0 accounts in use"}


def test_checkouts_are_paged_newest_first(client: httpx.Client, driver: CheckoutDriver) -> None:
    made = [check_out(client, driver, idempotency_key=f"k{n}").json()["id"] for n in range(3)]
    path = f"/customers/{driver.shop.customers[0]}/checkouts"

    first = client.get(path, params={"page_size": 2}).json()["items"]
    rest = client.get(path, params={"starting_after": first[-1]["id"]}).json()["items"]

    assert [each["id"] for each in first + rest] == made[::-1]
    assert client.get("/customers/cus_none/checkouts").status_code == 404
    assert client.get("/checkouts/chk_none").status_code == 404


def test_a_key_that_may_only_read_cannot_make_a_checkout(
    api: Api, client: httpx.Client, driver: CheckoutDriver
) -> None:
    made = check_out(client, driver).json()

    with api.client(api.key_for("read")) as reader:
        assert check_out(reader, driver, idempotency_key="k2").status_code == 403
        assert reader.get(f"/checkouts/{made['id']}").status_code == 200


# --- top-ups --------------------------------------------------------------------------------------


def rule(driver: CheckoutDriver, **changes: object) -> dict[str, object]:
    caps = {"day_cap": 1000, "month_cap": 5000}
    return {
        "threshold": 100,
        "package_id": driver.package(),
        "payment_method": "ok",
        **caps,
        **changes,
    }


def test_a_top_up_rule_is_set_shown_listed_and_deleted(
    client: httpx.Client, driver: CheckoutDriver
) -> None:
    wallet = f"/customers/{driver.shop.customers[0]}/wallets/USD/top-up"
    assert client.get(wallet).status_code == 404

    made = client.put(wallet, json=rule(driver)).json()

    assert (made["threshold"], made["day_cap"], made["declines_max"]) == (100, 1000, 3)
    assert made["low_since"] is not None
    assert client.get(wallet).json() == made
    assert client.get("/top-ups").json()["items"] == [made]
    assert client.get("/top-ups", params={"starting_after": made["wallet_id"]}).json() == {
        "items": []
    }
    assert client.delete(wallet).status_code == 204
    assert client.delete(wallet).status_code == 404


def test_a_disabled_top_up_rule_is_enabled_again(
    client: httpx.Client, driver: CheckoutDriver
) -> None:
    wallet = f"/customers/{driver.shop.customers[0]}/wallets/USD/top-up"
    client.put(wallet, json=rule(driver, payment_method="declined", declines_max=1))
    driver.sweep()
    off = client.get(wallet).json()

    on = client.post(f"{wallet}/enable").json()

    assert (off["declines"], off["disabled_reason"]) == (1, "too_many_declines")
    assert (on["declines"], on["disabled_at"], on["disabled_reason"]) == (0, None, None)


def test_a_pending_top_up_is_shown(client: httpx.Client, driver: CheckoutDriver) -> None:
    wallet = f"/customers/{driver.shop.customers[0]}/wallets/USD/top-up"
    client.put(wallet, json=rule(driver, payment_method="pending"))

    driver.sweep()

    assert client.get(wallet).json()["pending_purchase_id"] == driver.charge().purchase_id


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": 2**63}, "threshold"),
        ({"day_cap": 499}, "day_cap"),
        ({"month_cap": 999}, "month_cap"),
        ({"payment_method": None}, "payment_method"),
        ({"declines_max": 0}, "declines_max"),
        ({"is_off": True}, "is_off"),
    ],
)
def test_a_bad_top_up_rule_is_refused_by_field_and_not_stored(
    client: httpx.Client, driver: CheckoutDriver, changes: dict[str, object], field: str
) -> None:
    wallet = f"/customers/{driver.shop.customers[0]}/wallets/USD/top-up"

    answer = client.put(wallet, json=rule(driver, **changes))

    assert answer.status_code == 422
    assert field in details(answer)
    assert client.get(wallet).status_code == 404


def test_a_currency_without_a_wallet_is_refused(
    client: httpx.Client, driver: CheckoutDriver
) -> None:
    answer = client.get(f"/customers/{driver.shop.customers[0]}/wallets/EUR/top-up")

    assert (answer.status_code, answer.json()["code"]) == (422, "UNSUPPORTED_CURRENCY")
