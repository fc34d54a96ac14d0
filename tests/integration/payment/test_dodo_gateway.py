"""Dodo's own SDK over real HTTP: its requests, the meaning of its answers, and the search first."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.ids import Currency
from metering.payment.vendors.gateway import ChargeAnswer, ChargeStatus, PaymentGateway
from metering.payment.vendors.registry import gateway_of
from support.dodo_server import DodoServer, error, given
from support.own_simulator import new_account, new_charge

HASTY_MS = 300
KEY = "sk_test_secret"


@pytest.fixture(scope="module")
def http_server() -> Iterator[HTTPServer]:
    with HTTPServer(host="127.0.0.1", threaded=True) as running:
        yield running


@pytest.fixture
def dodo(http_server: HTTPServer) -> Iterator[DodoServer]:
    http_server.clear()
    server = DodoServer(http_server)
    yield server
    server.release()
    http_server.check_handler_errors()


def gateway_at(
    dodo: DodoServer, product_id: str | None = "pdt_1", **options: Any
) -> PaymentGateway:
    return gateway_of(new_account("dodo", KEY, dodo.url, product_id), **options)


@pytest.fixture
def gateway(dodo: DodoServer) -> PaymentGateway:
    return gateway_at(dodo)


# --- off-session ----------------------------------------------------------------------------------


def test_a_subscription_is_charged_and_its_payment_is_looked_up(
    dodo: DodoServer, gateway: PaymentGateway
) -> None:
    charge = new_charge("sub_1")

    answer = gateway.start(charge, is_repeated=False)

    request, looked = dodo.seen
    assert answer == ChargeAnswer("succeeded", "pay_1")
    assert request.path == "/subscriptions/sub_1/charge"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "product_price": 1234,
        "product_currency": "USD",
        "product_description": "1,000 credits",
        "metadata": {"gullak_charge_id": charge.charge_id},
    }
    assert (looked.method, looked.path) == ("GET", "/payments/pay_1")


@pytest.mark.parametrize("is_found", [True, False])
def test_the_amount_paid_includes_tax(
    dodo: DodoServer, gateway: PaymentGateway, *, is_found: bool
) -> None:
    charge = new_charge("sub_1")
    metadata = {"gullak_charge_id": charge.charge_id}
    made = dodo.add_payment("sub_1", metadata=metadata, total_amount=1456, currency="USD")

    answer = gateway.look_up(charge, None if is_found else made["payment_id"])

    assert answer == ChargeAnswer("succeeded", "pay_1", amount_minor=1456, currency=Currency("USD"))


@pytest.mark.parametrize(
    ("status", "error_code", "expected"),
    [
        ("failed", "INSUFFICIENT_FUNDS", ("failed", "INSUFFICIENT_FUNDS")),
        ("failed", None, ("failed", "declined")),
        ("failed", "Your card 4242 was declined", ("failed", "declined")),
        ("cancelled", None, ("failed", "canceled")),
        ("processing", None, ("pending", None)),
        ("requires_customer_action", None, ("pending", None)),
        ("a_word_of_tomorrow", None, ("pending", None)),
    ],
)
def test_only_a_final_status_is_final(
    dodo: DodoServer,
    gateway: PaymentGateway,
    status: str,
    error_code: str | None,
    expected: tuple[str, str | None],
) -> None:
    dodo.status, dodo.error_code = status, error_code

    answer = gateway.start(new_charge("sub_1"), is_repeated=False)

    assert (answer.status, answer.failure) == expected


@pytest.mark.parametrize("response", [error(404, "NOT_FOUND"), error(500, "OOPS"), given([])])
def test_a_charge_whose_payment_cannot_be_looked_up_yet_is_pending(
    dodo: DodoServer, gateway: PaymentGateway, response: Response
) -> None:
    dodo.reads["/payments/"] = response

    answer = gateway.start(new_charge("sub_1"), is_repeated=False)

    assert answer == ChargeAnswer("pending", "pay_1")


# --- on a page ------------------------------------------------------------------------------------


def test_a_page_sells_the_product_of_the_account_for_the_amount(
    dodo: DodoServer, gateway: PaymentGateway
) -> None:
    charge = new_charge()

    answer = gateway.start(charge, is_repeated=False)

    (request,) = dodo.seen
    assert answer == ChargeAnswer("pending", "cks_1", url="https://checkout.dodo.example/cks_1")
    assert request.path == "/checkouts"
    assert request.body == {
        "product_cart": [{"product_id": "pdt_1", "quantity": 1, "amount": 1234}],
        "billing_currency": "USD",
        "customer": {"email": "a@example.com", "name": "A"},
        "metadata": {"gullak_charge_id": charge.charge_id},
        "return_url": "https://shop.example/done",
    }


def test_a_page_of_an_account_without_a_product_is_refused_without_a_request(
    dodo: DodoServer,
) -> None:
    with pytest.raises(GatewayRefusedError, match="product_id"):
        gateway_at(dodo, product_id=None).start(new_charge(), is_repeated=False)

    assert dodo.seen == []


def test_a_page_whose_url_was_lost_is_opened_again(
    dodo: DodoServer, gateway: PaymentGateway
) -> None:
    charge = new_charge()
    dodo.answer_next(error(500, "OOPS"))
    with pytest.raises(GatewayUnavailableError):
        gateway.start(charge, is_repeated=False)

    assert gateway.start(charge, is_repeated=True).payment_id == "cks_2"


@pytest.mark.parametrize(
    ("age", "status", "failure"),
    [(timedelta(hours=24), "pending", None), (timedelta(hours=25), "failed", "expired")],
)
def test_an_unpaid_page_fails_after_its_day(
    dodo: DodoServer,
    gateway: PaymentGateway,
    age: timedelta,
    status: ChargeStatus,
    failure: str | None,
) -> None:
    charge = new_charge()
    gateway.start(charge, is_repeated=False)
    dodo.age_page(age)

    assert gateway.look_up(charge, "cks_1") == ChargeAnswer(status, "cks_1", failure=failure)


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_a_paid_page_leads_to_its_payment(
    dodo: DodoServer, gateway: PaymentGateway, status: str
) -> None:
    charge = new_charge()
    gateway.start(charge, is_repeated=False)
    dodo.sessions[0]["payment_id"] = dodo.add_payment(None, status=status)["payment_id"]

    answer = gateway.look_up(charge, "cks_1")

    assert answer is not None
    assert (answer.status, answer.payment_id) == (status, "pay_2")


def test_a_payment_of_a_page_is_found_by_its_own_id(
    dodo: DodoServer, gateway: PaymentGateway
) -> None:
    payment_id = dodo.add_payment(None)["payment_id"]

    assert gateway.look_up(new_charge(), payment_id) == ChargeAnswer("succeeded", payment_id)


def test_a_payment_of_a_page_that_was_lost_is_found_by_its_charge(
    dodo: DodoServer, gateway: PaymentGateway
) -> None:
    charge = new_charge()
    dodo.add_payment(None, metadata={"gullak_charge_id": charge.charge_id})

    assert gateway.look_up(charge, None) == ChargeAnswer("succeeded", "pay_1")
    assert dodo.seen[0].query["product_id"] == "pdt_1"


# --- once, as far as possible ---------------------------------------------------------------------


def test_a_charge_whose_answer_was_lost_is_found_and_not_repeated(
    dodo: DodoServer,
) -> None:
    charge = new_charge("sub_1")
    dodo.hang()
    with pytest.raises(GatewayUnavailableError, match=r"no answer within 0\.3 s"):
        gateway_at(dodo, timeout_ms=HASTY_MS).start(charge, is_repeated=False)

    answer = gateway_at(dodo).start(charge, is_repeated=True)

    assert answer == ChargeAnswer("succeeded", "pay_1")
    assert (len(dodo.payments), len(dodo.posts)) == (1, 1)


@pytest.mark.parametrize(
    "response", [error(500, "OOPS"), given({}), Response("ok", content_type="text/plain")]
)
def test_a_charge_with_a_bad_answer_is_found_and_not_repeated(
    dodo: DodoServer, gateway: PaymentGateway, response: Response
) -> None:
    charge = new_charge("sub_1")
    dodo.answer_next(response)
    with pytest.raises(GatewayUnavailableError):
        gateway.start(charge, is_repeated=False)

    assert gateway.start(charge, is_repeated=True) == ChargeAnswer("succeeded", "pay_1")
    assert len(dodo.payments) == 1


def test_a_repeated_charge_is_searched_among_the_payments_of_its_subscription(
    dodo: DodoServer, gateway: PaymentGateway
) -> None:
    dodo.add_payment("sub_1", metadata={"gullak_charge_id": "chg_of_another"})
    dodo.add_payment("sub_2")

    answer = gateway.start(new_charge("sub_1"), is_repeated=True)

    listed, charged, _ = dodo.seen
    assert answer == ChargeAnswer("succeeded", "pay_3")
    assert (listed.query["subscription_id"], listed.query["page_size"]) == ("sub_1", "100")
    assert listed.query["page_number"] == "0"
    assert charged.path == "/subscriptions/sub_1/charge"


def test_payments_from_before_the_charge_are_not_searched(
    dodo: DodoServer, gateway: PaymentGateway
) -> None:
    for _ in range(201):
        dodo.add_payment("sub_1", created_at="2020-01-01T00:00:00.000000Z")

    assert gateway.look_up(new_charge("sub_1"), None) is None


def test_a_failed_charge_that_is_found_again_has_its_reason(
    dodo: DodoServer, gateway: PaymentGateway
) -> None:
    charge = new_charge("sub_1")
    dodo.status, dodo.error_code = "failed", "EXPIRED_CARD"
    made = gateway.start(charge, is_repeated=False)

    assert gateway.look_up(charge, None) == made
    assert made.failure == "EXPIRED_CARD"


def test_the_successful_one_of_several_payments_of_a_charge_decides(
    dodo: DodoServer, gateway: PaymentGateway
) -> None:
    charge = new_charge("sub_1")
    metadata = {"gullak_charge_id": charge.charge_id}
    for status in ("failed", "succeeded", "processing"):
        dodo.add_payment("sub_1", status=status, metadata=metadata)

    assert gateway.look_up(charge, None) == ChargeAnswer("succeeded", "pay_2")


def test_an_endless_search_does_not_charge(dodo: DodoServer, gateway: PaymentGateway) -> None:
    for _ in range(200):
        dodo.add_payment("sub_1")

    with pytest.raises(GatewayUnavailableError, match="too many"):
        gateway.start(new_charge("sub_1"), is_repeated=True)

    assert dodo.posts == []


@pytest.mark.parametrize("others", [99, 100, 101, 199])
def test_a_search_that_reaches_the_last_page_charges(
    dodo: DodoServer, gateway: PaymentGateway, others: int
) -> None:
    for _ in range(others):
        dodo.add_payment("sub_1")

    gateway.start(new_charge("sub_1"), is_repeated=True)

    assert len(dodo.posts) == 1


@pytest.mark.parametrize(
    "response",
    [
        given([]),
        given({"items": None}),
        Response("ok", content_type="text/plain"),
        error(503, "AWAY"),
    ],
)
def test_an_unreadable_list_does_not_charge(
    dodo: DodoServer, gateway: PaymentGateway, response: Response
) -> None:
    dodo.reads["/payments"] = response

    with pytest.raises(GatewayUnavailableError):
        gateway.start(new_charge("sub_1"), is_repeated=True)

    assert dodo.posts == []


@pytest.mark.parametrize("method", [None, "sub_1"])
@pytest.mark.parametrize("payment_id", [None, "pay_404", "cks_404"])
def test_the_look_up_of_an_unknown_payment_returns_none(
    gateway: PaymentGateway, method: str | None, payment_id: str | None
) -> None:
    assert gateway.look_up(new_charge(method), payment_id) is None


# --- cancelled ------------------------------------------------------------------------------------


def test_a_pending_payment_cannot_be_cancelled(dodo: DodoServer, gateway: PaymentGateway) -> None:
    charge = new_charge("sub_1")
    dodo.status = "processing"
    made = gateway.start(charge, is_repeated=False)

    assert gateway.cancel(charge, made.payment_id) == made
    assert len(dodo.posts) == 1


def test_a_cancelled_charge_that_was_never_made_has_failed(gateway: PaymentGateway) -> None:
    answer = gateway.cancel(new_charge("sub_1"), None)

    assert answer == ChargeAnswer("failed", None, failure="canceled")


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [(409, "PREVIOUS_PAYMENT_PENDING"), (429, "TOO_MANY"), (500, "OOPS"), (503, "AWAY")],
)
def test_an_answer_without_an_outcome_leaves_it_open_and_is_requested_once(
    dodo: DodoServer, gateway: PaymentGateway, status: int, code: str
) -> None:
    dodo.answer_next(error(status, code, message=KEY))

    with pytest.raises(GatewayUnavailableError) as raised:
        gateway.start(new_charge("sub_1"), is_repeated=False)

    assert raised.value.reason == f"it answered {status} ({code})"
    assert len(dodo.seen) == 1


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (error(401, "UNAUTHORIZED", f"the key {KEY} is bad"), "it answered 401 (UNAUTHORIZED)"),
        (error(422, "PRODUCT_NOT_FOUND"), "it answered 422 (PRODUCT_NOT_FOUND)"),
        (error(404, "SUBSCRIPTION_NOT_FOUND"), "it answered 404 (SUBSCRIPTION_NOT_FOUND)"),
        (error(400, f"no code but {KEY}"), "it answered 400"),
        (Response("<html>", 403, content_type="text/html"), "it answered 403"),
        (Response(status=301, headers={"location": "/elsewhere"}), "it answered 301"),
    ],
)
def test_the_reason_of_a_refusal_holds_only_codes(
    dodo: DodoServer, gateway: PaymentGateway, response: Response, reason: str
) -> None:
    dodo.answer_next(response)

    with pytest.raises(GatewayRefusedError) as raised:
        gateway.start(new_charge("sub_1"), is_repeated=False)

    assert raised.value.reason == reason
    assert len(dodo.seen) == 1


@pytest.mark.parametrize(
    "response",
    [
        {"session_id": "cks_1"},
        {"session_id": "cks_1", "checkout_url": "javascript:alert(1)"},
        {"checkout_url": "https://checkout.dodo.example/1"},
    ],
)
def test_a_page_without_a_valid_url_is_refused(
    dodo: DodoServer, gateway: PaymentGateway, response: dict[str, str]
) -> None:
    dodo.answer_next(given(response))

    with pytest.raises(GatewayUnavailableError, match="cannot be read"):
        gateway.start(new_charge(), is_repeated=False)
