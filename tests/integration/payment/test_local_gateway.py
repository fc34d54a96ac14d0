"""The local gateway as a process, through its adapter: a charge is one payment, whatever breaks."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import dodopayments
import httpx
import pytest
from dodopayments.types import UnwrapWebhookEvent
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.payment.vendors.gateway import (
    ChargeAnswer,
    ChargeRequest,
    GatewayAccount,
    PaymentGateway,
)
from support.own_gateway import OwnGateway, new_charge, running_gateway
from support.webhook_receiver import Inbox
from worker import charging
from worker.settings import settings_from

HASTY_MS = 300
WAIT_S = 20


@pytest.fixture(scope="module")
def inbox_server() -> Iterator[HTTPServer]:
    with HTTPServer(host="127.0.0.1", threaded=True) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(module_data_dir: Path, inbox_server: HTTPServer) -> Iterator[OwnGateway]:
    url = inbox_server.url_for("/inbox")
    with running_gateway(module_data_dir, webhook_url=url, pending_s=0) as running:
        yield running


@pytest.fixture
def inbox(gateway: OwnGateway, inbox_server: HTTPServer) -> Inbox:
    """A receiver that takes the gateway's webhooks if their signatures are good."""
    inbox_server.clear()
    receiver = Inbox(gateway.keys.webhook_secret)
    inbox_server.expect_request("/inbox", method="POST").respond_with_handler(receiver)
    return receiver


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def told(inbox: Inbox, payment_id: str | None) -> list[UnwrapWebhookEvent]:
    """What was told of a payment, verified and parsed by the vendor's SDK, nothing missing."""
    client = dodopayments.DodoPayments(bearer_token="none", webhook_key=inbox.secrets[0])
    assert payment_id is not None
    events: list[Any] = []  # not every event of the SDK has a payment
    for headers, body in inbox.requests:
        event = client.webhooks.unwrap(body.decode(), headers=headers)
        events.append(type(event).model_validate_json(body))
    return [event for event in events if event.data.payment_id == payment_id]


def status_of(gateway: PaymentGateway, charge: ChargeRequest, payment_id: str | None) -> str:
    answer = gateway.look_up(charge, payment_id)
    assert answer is not None
    return answer.status


# --- outcomes -------------------------------------------------------------------------------------


def test_a_saved_method_is_charged_at_once(gateway: OwnGateway) -> None:
    charge = new_charge("pm_ok")

    answer = gateway.adapter().start(charge, is_repeated=False)

    (payment,) = gateway.payments_of(charge)
    assert answer == ChargeAnswer("succeeded", payment["payment_id"])
    assert (payment["amount"], payment["currency"]) == (12_34, "USD")


def test_a_decline_is_an_answer_with_its_reason(gateway: OwnGateway) -> None:
    answer = gateway.adapter().start(new_charge("pm_declined"), is_repeated=False)

    assert (answer.status, answer.failure) == ("failed", "card_declined")


def test_a_pending_payment_succeeds_after_its_delay(gateway: OwnGateway) -> None:
    charge = new_charge("pm_pending")
    adapter = gateway.adapter()

    answer = adapter.start(charge, is_repeated=False)

    assert answer.status == "pending"
    wait_until(lambda: status_of(adapter, charge, answer.payment_id) == "succeeded")


@pytest.mark.parametrize(("decision", "status"), [("yes", "succeeded"), ("no", "failed")])
def test_a_customer_decides_on_the_page_and_goes_back_to_the_shop(
    gateway: OwnGateway, decision: str, status: str
) -> None:
    charge = new_charge()
    adapter = gateway.adapter()
    answer = adapter.start(charge, is_repeated=False)

    assert answer.url is not None
    shown = httpx.get(answer.url)
    back = httpx.post(f"{answer.url}/{decision}")

    assert "1,000 credits" in shown.text
    assert back.headers["location"] == charge.return_url
    assert status_of(adapter, charge, answer.payment_id) == status


def test_a_page_tells_what_it_sells_as_text(gateway: OwnGateway) -> None:
    charge = new_charge(description="<script>alert(1)</script>")
    answer = gateway.adapter().start(charge, is_repeated=False)

    assert answer.url is not None
    assert "<script>" not in httpx.get(answer.url).text


# --- once -----------------------------------------------------------------------------------------


def test_one_charge_asked_for_by_many_at_once_is_one_payment(gateway: OwnGateway) -> None:
    charge = new_charge("pm_ok")
    with ThreadPoolExecutor(8) as threads:
        answers = [
            threads.submit(gateway.adapter().start, charge, is_repeated=True) for _ in range(8)
        ]

    (payment,) = gateway.payments_of(charge)
    made = ChargeAnswer("succeeded", payment["payment_id"])
    assert [answer.result() for answer in answers] == [made] * 8


def test_one_key_with_another_amount_is_refused(gateway: OwnGateway) -> None:
    charge = new_charge("pm_ok")
    adapter = gateway.adapter()
    adapter.start(charge, is_repeated=False)

    with pytest.raises(GatewayRefusedError, match="IDEMPOTENCY_CONFLICT"):
        adapter.start(replace(charge, amount_minor=1), is_repeated=True)


def test_a_charge_that_was_made_and_never_answered_is_not_made_again(gateway: OwnGateway) -> None:
    charge = new_charge("pm_hang")
    with pytest.raises(GatewayUnavailableError, match="no answer within"):
        gateway.adapter(timeout_ms=HASTY_MS).start(charge, is_repeated=False)

    answer = gateway.adapter().start(charge, is_repeated=True)

    (payment,) = gateway.payments_of(charge)
    assert answer == ChargeAnswer("succeeded", payment["payment_id"])


def test_a_worker_waits_for_a_provider_as_long_as_its_setting_says(
    gateway: OwnGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = settings_from({"GULLAK_CHARGE_TIMEOUT_MS": str(HASTY_MS)})
    monkeypatch.setattr(charging, "settings", lambda: hasty)
    account = GatewayAccount("local", gateway.keys.api_key, gateway.url)

    with pytest.raises(GatewayUnavailableError, match=f"no answer within {HASTY_MS / 1000:g} s"):
        charging.open_gateway(account).start(new_charge("pm_hang"), is_repeated=False)


def test_a_charge_that_was_made_and_answered_500_is_not_made_again(gateway: OwnGateway) -> None:
    charge = new_charge("pm_500")
    with pytest.raises(GatewayUnavailableError, match="500"):
        gateway.adapter().start(charge, is_repeated=False)

    answer = gateway.adapter().start(charge, is_repeated=True)

    assert answer.status == "succeeded"
    assert len(gateway.payments_of(charge)) == 1


def test_a_gateway_killed_while_it_charges_knows_the_payment_when_it_is_back(
    gateway: OwnGateway,
) -> None:
    charge = new_charge("pm_hang")
    with ThreadPoolExecutor(1) as threads:
        lost = threads.submit(gateway.adapter().start, charge, is_repeated=False)
        wait_until(lambda: bool(gateway.payments_of(charge)))
        gateway.kill()
        gateway.start()

        answer = gateway.adapter().start(charge, is_repeated=True)

    assert isinstance(lost.exception(), GatewayUnavailableError)
    assert answer.status == "succeeded"
    assert len(gateway.payments_of(charge)) == 1


# --- looked up, stopped ---------------------------------------------------------------------------


def test_a_charge_is_found_by_its_own_id_alone(gateway: OwnGateway) -> None:
    charge = new_charge("pm_ok")
    adapter = gateway.adapter()
    made = adapter.start(charge, is_repeated=False)

    assert adapter.look_up(charge, None) == made


@pytest.mark.parametrize("payment_id", [None, "pay_unknown", "pay?x=1"])
def test_a_charge_that_was_never_asked_for_is_none(
    gateway: OwnGateway, payment_id: str | None
) -> None:
    assert gateway.adapter().look_up(new_charge("pm_ok"), payment_id) is None


def test_a_pending_payment_that_is_stopped_has_failed_for_good(gateway: OwnGateway) -> None:
    charge = new_charge()
    adapter = gateway.adapter()
    made = adapter.start(charge, is_repeated=False)

    stopped = adapter.cancel(charge, made.payment_id)

    gateway.ask("POST", f"/payments/{made.payment_id}/succeed")
    assert stopped == ChargeAnswer("failed", made.payment_id, failure="canceled")
    assert adapter.look_up(charge, made.payment_id) == stopped


def test_stopping_a_payment_that_has_succeeded_says_so(gateway: OwnGateway) -> None:
    charge = new_charge("pm_ok")
    adapter = gateway.adapter()
    made = adapter.start(charge, is_repeated=False)

    assert adapter.cancel(charge, None) == made


def test_stopping_what_was_never_asked_for_is_its_end(gateway: OwnGateway) -> None:
    answer = gateway.adapter().cancel(new_charge("pm_ok"), None)

    assert answer == ChargeAnswer("failed", None, failure="canceled")


@pytest.mark.parametrize("payment_method", ["pm_unknown", "x" * 3000])
def test_a_payment_method_that_nobody_knows_is_refused(
    gateway: OwnGateway, payment_method: str
) -> None:
    charge = new_charge(payment_method)

    with pytest.raises(GatewayRefusedError, match="INVALID_REQUEST"):
        gateway.adapter().start(charge, is_repeated=False)

    assert gateway.payments_of(charge) == []


def test_a_wrong_key_is_refused_and_not_quoted(gateway: OwnGateway) -> None:
    with pytest.raises(GatewayRefusedError, match="UNAUTHORIZED") as raised:
        gateway.adapter(api_key="sk_wrong").start(new_charge("pm_ok"), is_repeated=False)

    assert "sk_wrong" not in raised.value.message


# --- told -----------------------------------------------------------------------------------------


def test_the_end_of_a_payment_is_told_as_dodo_tells_it(gateway: OwnGateway, inbox: Inbox) -> None:
    charge = new_charge("pm_ok")
    payment_id = gateway.adapter().start(charge, is_repeated=False).payment_id
    wait_until(lambda: bool(told(inbox, payment_id)))

    (event,) = told(inbox, payment_id)

    assert isinstance(event, dodopayments.types.PaymentSucceededWebhookEvent)
    assert event.data.metadata == {"gullak_charge_id": charge.charge_id}
    assert (event.data.total_amount, event.data.currency) == (12_34, "USD")


def test_refunds_and_disputes_are_told_as_dodo_tells_them(
    gateway: OwnGateway, inbox: Inbox
) -> None:
    payment_id = gateway.adapter().start(new_charge("pm_ok"), is_repeated=False).payment_id
    gateway.ask("POST", f"/payments/{payment_id}/refunds", {"amount": 34})
    dispute = gateway.ask("POST", f"/payments/{payment_id}/disputes", {})
    gateway.ask("POST", f"/disputes/{dispute['reversal_id']}/lost")
    wait_until(lambda: len(told(inbox, payment_id)) == 4)

    _, refund, opened, lost = told(inbox, payment_id)

    assert isinstance(refund, dodopayments.types.RefundSucceededWebhookEvent)
    assert (refund.type, refund.data.amount, refund.data.is_partial) == (
        "refund.succeeded",
        34,
        True,
    )
    assert isinstance(opened, dodopayments.types.DisputeOpenedWebhookEvent)
    assert (opened.type, opened.data.amount) == ("dispute.opened", "1234")
    assert isinstance(lost, dodopayments.types.DisputeLostWebhookEvent)
    assert (lost.type, lost.data.dispute_status) == ("dispute.lost", "dispute_lost")
    assert lost.data.dispute_id == opened.data.dispute_id


def test_a_webhook_that_is_not_taken_comes_again_and_can_be_asked_for_again(
    gateway: OwnGateway, inbox: Inbox, inbox_server: HTTPServer
) -> None:
    refused: list[str] = []

    def take_the_second_time(request: Request) -> Response:
        webhook_id = request.headers["webhook-id"]
        if webhook_id in refused:
            return inbox(request)
        refused.append(webhook_id)
        return Response(status=500)

    inbox_server.clear()
    inbox_server.expect_request("/inbox").respond_with_handler(take_the_second_time)
    payment_id = gateway.adapter().start(new_charge("pm_declined"), is_repeated=False).payment_id
    wait_until(lambda: len(told(inbox, payment_id)) == 1)

    gateway.ask("POST", "/webhooks/resend")
    wait_until(lambda: len(told(inbox, payment_id)) == 2)

    assert {event.type for event in told(inbox, payment_id)} == {"payment.failed"}


def test_what_was_not_told_before_a_kill_is_told_after_it(
    gateway: OwnGateway, inbox: Inbox, inbox_server: HTTPServer
) -> None:
    inbox_server.clear()
    inbox_server.expect_request("/inbox").respond_with_data(status=503)
    payment_id = gateway.adapter().start(new_charge("pm_ok"), is_repeated=False).payment_id
    gateway.kill()
    inbox_server.clear()
    inbox_server.expect_request("/inbox", method="POST").respond_with_handler(inbox)

    gateway.start()

    wait_until(lambda: bool(told(inbox, payment_id)))
