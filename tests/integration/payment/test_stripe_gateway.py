"""Stripe's own SDK over real HTTP: its requests, the meaning of its answers, and one charge."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.payment.vendors.gateway import ChargeAnswer, PaymentGateway
from metering.payment.vendors.registry import gateway_of
from support.own_simulator import new_account, new_charge
from support.stripe_server import KEY, StripeServer, error, given, serving

HASTY_MS = 300


@pytest.fixture(scope="module")
def new_stripe(module_data_dir: Path) -> Iterator[Callable[[], StripeServer]]:
    with serving(module_data_dir) as make:
        yield make


@pytest.fixture
def stripe(new_stripe: Callable[[], StripeServer]) -> StripeServer:
    return new_stripe()


def gateway_at(stripe: StripeServer, **options: Any) -> PaymentGateway:
    return gateway_of(new_account("stripe", KEY, stripe.url), **options)


@pytest.fixture
def gateway(stripe: StripeServer) -> PaymentGateway:
    return gateway_at(stripe)


# --- off-session ----------------------------------------------------------------------------------


def test_a_saved_method_is_charged_off_session_under_the_id_of_the_charge(
    stripe: StripeServer, gateway: PaymentGateway
) -> None:
    charge = new_charge("cus_9/pm_ok")

    answer = gateway.start(charge, is_repeated=False)

    (request,) = stripe.seen
    assert answer == ChargeAnswer("succeeded", "pi_1")
    assert request.path == "/v1/payment_intents"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Idempotency-Key"] == charge.charge_id
    assert request.form == {
        "amount": "1234",
        "currency": "usd",
        "customer": "cus_9",
        "payment_method": "pm_ok",
        "off_session": "true",
        "confirm": "true",
        "automatic_payment_methods[enabled]": "true",
        "automatic_payment_methods[allow_redirects]": "never",
        "description": "1,000 credits",
        "metadata[gullak_charge_id]": charge.charge_id,
    }


@pytest.mark.parametrize(
    ("method", "failure"),
    [
        ("pm_poor", "insufficient_funds"),
        ("pm_old", "expired_card"),
        ("pm_careful", "authentication_required"),
        ("pm_action", "authentication_required"),
    ],
)
def test_a_decline_is_an_answer_with_the_banks_reason(
    gateway: PaymentGateway, method: str, failure: str
) -> None:
    answer = gateway.start(new_charge(f"cus_9/{method}"), is_repeated=False)

    assert answer == ChargeAnswer("failed", "pi_1", failure=failure)


@pytest.mark.parametrize("method", ["pm_pending", "pm_capture"])
def test_a_payment_that_has_not_ended_is_pending(gateway: PaymentGateway, method: str) -> None:
    answer = gateway.start(new_charge(f"cus_9/{method}"), is_repeated=False)

    assert answer == ChargeAnswer("pending", "pi_1")


@pytest.mark.parametrize("written", ["pm_ok", "cus_9/", "/pm_ok", "cus_9"])
def test_a_method_without_its_customer_is_refused_without_a_request(
    stripe: StripeServer, gateway: PaymentGateway, written: str
) -> None:
    with pytest.raises(GatewayRefusedError, match=r"cus_…/pm_…"):
        gateway.start(new_charge(written), is_repeated=False)

    assert stripe.seen == []


# --- on a page ------------------------------------------------------------------------------------


def test_a_page_carries_the_charge_for_itself_and_for_its_payment(
    stripe: StripeServer, gateway: PaymentGateway
) -> None:
    charge = new_charge()

    answer = gateway.start(charge, is_repeated=False)

    (request,) = stripe.seen
    assert answer == ChargeAnswer("pending", "cs_test_1", url=stripe.sessions[0]["url"])
    assert request.headers["Idempotency-Key"] == charge.charge_id
    assert request.form == {
        "mode": "payment",
        "line_items[0][quantity]": "1",
        "line_items[0][price_data][currency]": "usd",
        "line_items[0][price_data][unit_amount]": "1234",
        "line_items[0][price_data][product_data][name]": "1,000 credits",
        "customer_email": "a@example.com",
        "client_reference_id": charge.charge_id,
        "success_url": "https://shop.example/done",
        "cancel_url": "https://shop.example/done",
        "metadata[gullak_charge_id]": charge.charge_id,
        "payment_intent_data[description]": "1,000 credits",
        "payment_intent_data[metadata][gullak_charge_id]": charge.charge_id,
    }


def test_a_page_without_a_return_url_is_refused_without_a_request(
    stripe: StripeServer, gateway: PaymentGateway
) -> None:
    with pytest.raises(GatewayRefusedError, match="return_url"):
        gateway.start(new_charge(return_url=None), is_repeated=False)

    assert stripe.seen == []


def test_a_page_that_is_requested_again_is_the_same_page(
    stripe: StripeServer, gateway: PaymentGateway
) -> None:
    charge = new_charge()
    first = gateway.start(charge, is_repeated=False)

    assert gateway.start(charge, is_repeated=True) == first
    assert len(stripe.sessions) == 1


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        ({}, ChargeAnswer("pending", "cs_test_1", url="https://pay.example/1")),
        ({"status": "expired", "url": None}, ChargeAnswer("failed", "cs_test_1", None, "expired")),
        (
            {"status": "complete", "payment_status": "paid", "payment_intent": {"id": "pi_7"}},
            ChargeAnswer("succeeded", "pi_7"),
        ),
        (
            {"status": "complete", "payment_status": "paid", "payment_intent": "pi_7"},
            ChargeAnswer("succeeded", "pi_7"),
        ),
        (
            {"status": "complete", "url": None, "payment_intent": {"status": "processing"}},
            ChargeAnswer("pending", "cs_test_1"),
        ),
        (
            {
                "status": "complete",
                "url": None,
                "payment_intent": {
                    "status": "requires_payment_method",
                    "last_payment_error": {"code": "payment_intent_payment_attempt_failed"},
                },
            },
            ChargeAnswer("failed", "cs_test_1", None, "payment_intent_payment_attempt_failed"),
        ),
        # A decline on the page is not final: the customer may use another card.
        (
            {"payment_intent": {"status": "requires_payment_method"}},
            ChargeAnswer("pending", "cs_test_1", url="https://pay.example/1"),
        ),
    ],
)
def test_a_page_has_the_state_of_its_payment(
    stripe: StripeServer, gateway: PaymentGateway, state: dict[str, Any], answer: ChargeAnswer
) -> None:
    charge = new_charge()
    gateway.start(charge, is_repeated=False)
    (session,) = stripe.sessions
    stripe.change(session, **{"url": "https://pay.example/1", **state})
    if isinstance(intent := state.get("payment_intent"), dict):
        stripe.add_intents(1, "cus_9", **{"id": "pi_7", **intent})
        stripe.change(
            session, **{"url": "https://pay.example/1", **state, "payment_intent": "pi_7"}
        )

    assert gateway.look_up(charge, "cs_test_1") == answer
    assert stripe.seen[-1].form == {"expand[0]": "payment_intent"}


# --- once -----------------------------------------------------------------------------------------


def test_a_charge_whose_answer_was_lost_is_found_again(stripe: StripeServer) -> None:
    charge = new_charge("cus_9/pm_ok")
    stripe.hang()
    with pytest.raises(GatewayUnavailableError, match=r"no answer within 0\.3 s"):
        gateway_at(stripe, timeout_ms=HASTY_MS).start(charge, is_repeated=False)

    answer = gateway_at(stripe).start(charge, is_repeated=True)

    assert answer == ChargeAnswer("succeeded", "pi_1")
    assert (len(stripe.intents), len(stripe.posts)) == (1, 1)


def test_a_charge_that_was_answered_500_is_found_though_its_key_repeats_the_500(
    stripe: StripeServer, gateway: PaymentGateway
) -> None:
    charge = new_charge("cus_9/pm_ok")
    stripe.answer_next(error(500, type="api_error", message="oops"))
    with pytest.raises(GatewayUnavailableError, match="500"):
        gateway.start(charge, is_repeated=False)

    assert gateway.start(charge, is_repeated=True) == ChargeAnswer("succeeded", "pi_1")
    assert len(stripe.intents) == 1


def test_a_charge_that_is_not_listed_yet_is_made_once_by_its_key(
    stripe: StripeServer, gateway: PaymentGateway
) -> None:
    charge = new_charge("cus_9/pm_ok")
    first = gateway.start(charge, is_repeated=False)
    assert len(stripe.intents) == 1
    stripe.forget()

    again = gateway.start(charge, is_repeated=True)

    assert again == first
    assert stripe.intents == []


def test_a_repeated_charge_that_was_never_made_is_made(
    stripe: StripeServer, gateway: PaymentGateway
) -> None:
    stripe.add_intents(1, "cus_9", metadata={"gullak_charge_id": "chg_of_another"})

    answer = gateway.start(new_charge("cus_9/pm_ok"), is_repeated=True)

    assert answer == ChargeAnswer("succeeded", "pi_2")


def test_a_lost_charge_is_found_on_a_later_page(
    stripe: StripeServer, gateway: PaymentGateway
) -> None:
    charge = new_charge("cus_9/pm_ok")
    gateway.start(charge, is_repeated=False)
    stripe.add_intents(150, "cus_9")

    assert gateway.look_up(charge, None) == ChargeAnswer("succeeded", "pi_1")


def test_an_endless_search_leaves_the_outcome_open(
    stripe: StripeServer, gateway: PaymentGateway
) -> None:
    stripe.add_intents(201, "cus_9")

    with pytest.raises(GatewayUnavailableError, match="too many"):
        gateway.start(new_charge("cus_9/pm_ok"), is_repeated=True)

    assert stripe.posts == []


def test_a_lost_page_is_found_by_its_charge(gateway: PaymentGateway) -> None:
    charge = new_charge()
    made = gateway.start(charge, is_repeated=False)
    gateway.start(new_charge(), is_repeated=False)

    assert gateway.look_up(charge, None) == made


@pytest.mark.parametrize("method", [None, "cus_9/pm_ok"])
@pytest.mark.parametrize("payment_id", [None, "pi_404", "cs_404"])
def test_the_look_up_of_an_unknown_payment_returns_none(
    gateway: PaymentGateway, method: str | None, payment_id: str | None
) -> None:
    assert gateway.look_up(new_charge(method), payment_id) is None


# --- cancelled ------------------------------------------------------------------------------------


def test_a_pending_payment_is_cancelled(stripe: StripeServer, gateway: PaymentGateway) -> None:
    charge = new_charge("cus_9/pm_capture")
    gateway.start(charge, is_repeated=False)

    answer = gateway.cancel(charge, None)

    assert answer == ChargeAnswer("failed", "pi_1", failure="canceled")
    assert stripe.intents[0]["status"] == "canceled"


def test_an_open_page_is_expired(stripe: StripeServer, gateway: PaymentGateway) -> None:
    charge = new_charge()
    made = gateway.start(charge, is_repeated=False)

    answer = gateway.cancel(charge, made.payment_id)

    assert answer == ChargeAnswer("failed", "cs_test_1", failure="expired")
    assert stripe.sessions[0]["status"] == "expired"


def test_a_payment_that_the_bank_processes_stays_pending(gateway: PaymentGateway) -> None:
    charge = new_charge("cus_9/pm_pending")
    made = gateway.start(charge, is_repeated=False)

    assert gateway.cancel(charge, made.payment_id) == made


def test_a_payment_that_has_succeeded_is_not_cancelled(
    stripe: StripeServer, gateway: PaymentGateway
) -> None:
    charge = new_charge("cus_9/pm_ok")
    made = gateway.start(charge, is_repeated=False)

    assert gateway.cancel(charge, made.payment_id) == made
    assert len(stripe.posts) == 1


def test_a_cancelled_charge_that_was_never_made_has_failed(gateway: PaymentGateway) -> None:
    answer = gateway.cancel(new_charge("cus_9/pm_ok"), None)

    assert answer == ChargeAnswer("failed", None, failure="canceled")


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [409, 429, 500, 503])
def test_an_answer_without_an_outcome_leaves_it_open_and_is_requested_once(
    stripe: StripeServer, gateway: PaymentGateway, status: int
) -> None:
    stripe.answer_next(error(status, type="api_error", message=KEY))

    with pytest.raises(GatewayUnavailableError, match=str(status)) as raised:
        gateway.start(new_charge("cus_9/pm_ok"), is_repeated=False)

    assert KEY not in str(raised.value)
    assert len(stripe.seen) == 1


@pytest.mark.parametrize(
    ("status", "fields", "reason"),
    [
        (401, {"message": f"Invalid API Key provided: {KEY}"}, "it answered 401"),
        (403, {"message": "no"}, "it answered 403"),
        (
            400,
            {"code": "amount_too_small", "param": "amount", "message": "of card 4242"},
            "it answered 400 (amount_too_small, amount)",
        ),
        (400, {"code": f"not a code: {KEY}"}, "it answered 400"),
        (400, {"type": "idempotency_error"}, "it answered 400"),
    ],
)
def test_the_reason_of_a_refusal_holds_only_codes(
    stripe: StripeServer,
    gateway: PaymentGateway,
    status: int,
    fields: dict[str, str],
    reason: str,
) -> None:
    stripe.answer_next(error(status, **fields))

    with pytest.raises(GatewayRefusedError) as raised:
        gateway.start(new_charge("cus_9/pm_ok"), is_repeated=False)

    assert raised.value.reason == reason


def test_a_redirect_is_refused_and_gets_no_key(
    stripe: StripeServer, gateway: PaymentGateway
) -> None:
    stripe.answer_next(Response(status_code=307, headers={"location": f"{stripe.url}/elsewhere"}))

    with pytest.raises(GatewayRefusedError, match="307"):
        gateway.start(new_charge("cus_9/pm_ok"), is_repeated=False)

    assert len(stripe.seen) == 1


@pytest.mark.parametrize(
    "response",
    [
        Response("<html>", media_type="text/html"),
        Response("{", media_type="application/json"),
        Response(b"\xff\xfe", media_type="application/json"),
        given([]),
        given({"object": "payment_intent", "status": "succeeded"}),
        given({"object": "payment_intent", "id": "pi_\0", "status": "succeeded"}),
        error(402, type="card_error", code="card_declined", payment_intent={"id": 1}),
    ],
)
def test_an_unreadable_answer_leaves_the_outcome_open(
    stripe: StripeServer, gateway: PaymentGateway, response: Response
) -> None:
    stripe.answer_next(response)

    with pytest.raises(GatewayUnavailableError, match=r"cannot be read|answered 200"):
        gateway.start(new_charge("cus_9/pm_ok"), is_repeated=False)


@pytest.mark.parametrize(
    "response", [given([]), given({"object": "list", "data": [], "has_more": True})]
)
def test_an_unreadable_list_leaves_the_outcome_open(
    stripe: StripeServer, gateway: PaymentGateway, response: Response
) -> None:
    stripe.lists = response

    with pytest.raises(GatewayUnavailableError, match="cannot be read"):
        gateway.start(new_charge("cus_9/pm_ok"), is_repeated=True)

    assert stripe.posts == []


@pytest.mark.parametrize("url", ["javascript:alert(1)", "https://x.example/\nset-cookie:a", 7])
def test_a_page_without_a_valid_url_is_refused(
    stripe: StripeServer, gateway: PaymentGateway, url: object
) -> None:
    session = {"id": "cs_1", "status": "open", "payment_status": "unpaid", "url": url}
    stripe.answer_next(given({"object": "checkout.session", **session}))

    with pytest.raises(GatewayUnavailableError, match="cannot be read"):
        gateway.start(new_charge(), is_repeated=False)
