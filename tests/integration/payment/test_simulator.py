"""The simulator as a process, through the Stripe adapter: a charge is one payment, whatever breaks.

Its events are verified by Stripe's own SDK.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import stripe
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.payment.vendors.gateway import (
    ChargeAnswer,
    ChargeRequest,
    GatewayAccount,
    PaymentGateway,
)
from support.own_simulator import OwnSimulator, new_charge, running_simulator
from worker import charging
from worker.demo.simulator.account import Account
from worker.demo.simulator.store import Store
from worker.settings import settings_from

HASTY_MS = 300
WAIT_S = 20
OK = "cus_9/pm_ok"


class Inbox:
    """A receiver that keeps the events whose signatures are good, and refuses all others."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.events: list[Any] = []

    def __call__(self, request: Request) -> Response:
        signature = request.headers["Stripe-Signature"]
        event = stripe.Webhook.construct_event(request.get_data(), signature, self.secret)
        self.events.append(event.to_dict())
        return Response(status=204)

    def events_of(self, payment_id: str | None) -> list[Any]:
        """The events about a payment."""
        subjects = [(event, event["data"]["object"]) for event in self.events]
        return [
            event
            for event, subject in subjects
            if payment_id in {subject["id"], subject.get("payment_intent")}
        ]

    def types(self, payment_id: str | None) -> list[str]:
        return [event["type"] for event in self.events_of(payment_id)]


@pytest.fixture(scope="module")
def inbox_server() -> Iterator[HTTPServer]:
    with HTTPServer(host="127.0.0.1", threaded=True) as running:
        yield running


@pytest.fixture(scope="module")
def simulator(module_data_dir: Path, inbox_server: HTTPServer) -> Iterator[OwnSimulator]:
    url = inbox_server.url_for("/inbox")
    with running_simulator(module_data_dir, webhook_url=url, pending_s=0) as running:
        yield running


@pytest.fixture
def inbox(simulator: OwnSimulator, inbox_server: HTTPServer) -> Inbox:
    inbox_server.clear()
    receiver = Inbox(simulator.keys.webhook_secret)
    inbox_server.expect_request("/inbox", method="POST").respond_with_handler(receiver)
    return receiver


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status_of(gateway: PaymentGateway, charge: ChargeRequest, payment_id: str | None) -> str:
    answer = gateway.look_up(charge, payment_id)
    assert answer is not None
    return answer.status


# --- outcomes -------------------------------------------------------------------------------------


def test_a_saved_method_is_charged_at_once(simulator: OwnSimulator) -> None:
    charge = new_charge(OK)

    answer = simulator.adapter().start(charge, is_repeated=False)

    (payment,) = simulator.payments_of(charge)
    assert answer == ChargeAnswer("succeeded", payment["id"])
    assert (payment["amount"], payment["amount_received"], payment["currency"]) == (
        12_34,
        12_34,
        "usd",
    )


def test_a_decline_is_an_answer_with_its_reason(simulator: OwnSimulator) -> None:
    answer = simulator.adapter().start(new_charge("cus_9/pm_declined"), is_repeated=False)

    assert (answer.status, answer.failure) == ("failed", "card_declined")


def test_a_pending_payment_succeeds_after_its_delay(simulator: OwnSimulator) -> None:
    charge = new_charge("cus_9/pm_pending")
    adapter = simulator.adapter()

    answer = adapter.start(charge, is_repeated=False)

    assert answer.status == "pending"
    wait_until(lambda: status_of(adapter, charge, answer.payment_id) == "succeeded")


def test_a_customer_pays_on_the_page_and_goes_back_to_the_shop(
    simulator: OwnSimulator, inbox: Inbox
) -> None:
    charge = new_charge()
    adapter = simulator.adapter()
    page = adapter.start(charge, is_repeated=False)

    assert page.url is not None
    shown = httpx.get(page.url)
    back = httpx.post(f"{page.url}/yes")

    (payment,) = simulator.payments_of(charge)
    assert "1,000 credits" in shown.text
    assert back.headers["location"] == charge.return_url
    assert adapter.look_up(charge, page.payment_id) == ChargeAnswer("succeeded", payment["id"])
    wait_until(lambda: len(inbox.events_of(payment["id"])) == 2)
    assert inbox.types(payment["id"]) == ["payment_intent.succeeded", "checkout.session.completed"]
    assert httpx.post(f"{page.url}/yes").status_code == 400
    assert len(simulator.payments_of(charge)) == 1


def test_after_a_decline_the_page_stays_open_for_another_card(simulator: OwnSimulator) -> None:
    charge = new_charge()
    adapter = simulator.adapter()
    page = adapter.start(charge, is_repeated=False)

    assert page.url is not None
    back = httpx.post(f"{page.url}/no")

    assert back.headers["location"] == page.url
    assert adapter.look_up(charge, page.payment_id) == page
    httpx.post(f"{page.url}/yes")
    assert status_of(adapter, charge, page.payment_id) == "succeeded"


def test_a_page_shows_its_description_as_text(simulator: OwnSimulator) -> None:
    charge = new_charge(description="<script>alert(1)</script>")
    answer = simulator.adapter().start(charge, is_repeated=False)

    assert answer.url is not None
    assert "<script>" not in httpx.get(answer.url).text


# --- once -----------------------------------------------------------------------------------------


def test_a_charge_that_is_requested_many_times_at_once_is_one_payment(
    simulator: OwnSimulator,
) -> None:
    charge = new_charge(OK)
    with ThreadPoolExecutor(8) as threads:
        answers = [
            threads.submit(simulator.adapter().start, charge, is_repeated=bool(number % 2))
            for number in range(8)
        ]

    (payment,) = simulator.payments_of(charge)
    assert [answer.result() for answer in answers] == [ChargeAnswer("succeeded", payment["id"])] * 8


def test_one_key_with_another_amount_is_refused(simulator: OwnSimulator) -> None:
    charge = new_charge(OK)
    adapter = simulator.adapter()
    adapter.start(charge, is_repeated=False)

    with pytest.raises(GatewayRefusedError, match="400"):
        adapter.start(replace(charge, amount_minor=1), is_repeated=False)

    assert [payment["amount"] for payment in simulator.payments_of(charge)] == [12_34]


def test_a_charge_whose_answer_was_lost_is_not_repeated(
    simulator: OwnSimulator,
) -> None:
    charge = new_charge("cus_9/pm_hang")
    with pytest.raises(GatewayUnavailableError, match="no answer within"):
        simulator.adapter(timeout_ms=HASTY_MS).start(charge, is_repeated=False)

    answer = simulator.adapter().start(charge, is_repeated=True)

    (payment,) = simulator.payments_of(charge)
    assert answer == ChargeAnswer("succeeded", payment["id"])


def test_a_worker_waits_for_a_provider_as_long_as_its_setting(
    simulator: OwnSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = settings_from({"GULLAK_CHARGE_TIMEOUT_MS": str(HASTY_MS)})
    monkeypatch.setattr(charging, "settings", lambda: hasty)
    account = GatewayAccount("stripe", simulator.keys.api_key, simulator.url)
    charge = new_charge("cus_9/pm_hang")

    with pytest.raises(GatewayUnavailableError, match=f"no answer within {HASTY_MS / 1000:g} s"):
        charging.open_gateway(account).start(charge, is_repeated=False)


def test_a_charge_that_was_answered_500_is_not_repeated(
    simulator: OwnSimulator,
) -> None:
    charge = new_charge("cus_9/pm_500")
    for _ in range(2):  # the answer is kept under the key, as Stripe keeps it
        with pytest.raises(GatewayUnavailableError, match="500"):
            simulator.adapter().start(charge, is_repeated=False)

    answer = simulator.adapter().start(charge, is_repeated=True)

    assert answer.status == "succeeded"
    assert len(simulator.payments_of(charge)) == 1


def test_a_simulator_that_was_killed_during_a_charge_still_has_the_payment(
    simulator: OwnSimulator,
) -> None:
    charge = new_charge("cus_9/pm_hang")
    with ThreadPoolExecutor(1) as threads:
        lost = threads.submit(simulator.adapter().start, charge, is_repeated=False)
        wait_until(lambda: bool(simulator.payments_of(charge)))
        simulator.kill()
        simulator.start()

        answer = simulator.adapter().start(charge, is_repeated=True)

    assert isinstance(lost.exception(), GatewayUnavailableError)
    assert answer.status == "succeeded"
    assert len(simulator.payments_of(charge)) == 1


# --- looked up, cancelled -------------------------------------------------------------------------


@pytest.mark.parametrize("method", [OK, None])
def test_a_charge_is_found_by_its_own_id_alone(simulator: OwnSimulator, method: str | None) -> None:
    charge = new_charge(method)
    adapter = simulator.adapter()
    made = adapter.start(charge, is_repeated=False)

    assert adapter.look_up(charge, None) == made


@pytest.mark.parametrize("payment_id", [None, "pi_unknown", "cs_unknown", "pi?x=1"])
def test_the_look_up_of_a_charge_that_was_never_requested_returns_none(
    simulator: OwnSimulator, payment_id: str | None
) -> None:
    assert simulator.adapter().look_up(new_charge(OK), payment_id) is None


def test_a_cancelled_page_takes_no_payment(simulator: OwnSimulator) -> None:
    charge = new_charge()
    adapter = simulator.adapter()
    made = adapter.start(charge, is_repeated=False)

    stopped = adapter.cancel(charge, made.payment_id)

    assert httpx.post(f"{made.url}/yes").status_code == 400
    assert stopped == ChargeAnswer("failed", made.payment_id, failure="expired")
    assert adapter.look_up(charge, made.payment_id) == stopped


def test_a_payment_that_has_succeeded_is_not_cancelled(simulator: OwnSimulator) -> None:
    charge = new_charge(OK)
    adapter = simulator.adapter()
    made = adapter.start(charge, is_repeated=False)

    assert adapter.cancel(charge, None) == made


def test_a_charge_that_was_never_requested_can_be_cancelled(simulator: OwnSimulator) -> None:
    answer = simulator.adapter().cancel(new_charge(OK), None)

    assert answer == ChargeAnswer("failed", None, failure="canceled")


@pytest.mark.parametrize("method", ["pm_unknown", "x" * 3000])
def test_an_unknown_payment_method_is_refused(simulator: OwnSimulator, method: str) -> None:
    charge = new_charge(f"cus_9/{method}")

    with pytest.raises(GatewayRefusedError, match="payment_method"):
        simulator.adapter().start(charge, is_repeated=False)

    assert simulator.payments_of(charge) == []


def test_a_wrong_key_is_refused_and_not_quoted(simulator: OwnSimulator) -> None:
    with pytest.raises(GatewayRefusedError, match="401") as raised:
        simulator.adapter(api_key="sk_wrong").start(new_charge(OK), is_repeated=False)

    assert "sk_wrong" not in raised.value.message


# --- events ---------------------------------------------------------------------------------------


def test_the_end_of_a_payment_is_an_event(simulator: OwnSimulator, inbox: Inbox) -> None:
    charge = new_charge(OK)
    payment_id = simulator.adapter().start(charge, is_repeated=False).payment_id
    wait_until(lambda: bool(inbox.events_of(payment_id)))

    (event,) = inbox.events_of(payment_id)

    assert event["type"] == "payment_intent.succeeded"
    assert event["data"]["object"]["metadata"] == {"gullak_charge_id": charge.charge_id}
    assert event["data"]["object"]["amount_received"] == 12_34


@pytest.mark.parametrize(("evidence", "status"), [("winning_evidence", "won"), ("", "lost")])
def test_refunds_and_disputes_are_events(
    simulator: OwnSimulator, inbox: Inbox, evidence: str, status: str
) -> None:
    charge = new_charge("cus_9/pm_disputed")
    payment_id = simulator.adapter().start(charge, is_repeated=False).payment_id
    simulator.ask("POST", "refunds", payment_intent=payment_id, amount=34)
    (dispute,) = simulator.ask("GET", "disputes", payment_intent=payment_id)["data"]
    form = {"evidence[uncategorized_text]": evidence}
    simulator.ask("POST", f"disputes/{dispute['id']}{'' if evidence else '/close'}", **form)
    wait_until(lambda: len(inbox.events_of(payment_id)) == 4)

    _, opened, refund, ended = inbox.events_of(payment_id)

    assert (refund["type"], refund["data"]["object"]["amount"]) == ("refund.created", 34)
    assert refund["data"]["object"]["status"] == "succeeded"
    assert opened["type"] == "charge.dispute.created"
    assert opened["data"]["object"]["amount"] == 12_34
    assert ended["type"] == "charge.dispute.closed"
    assert ended["data"]["object"]["id"] == dispute["id"]
    assert ended["data"]["object"]["status"] == status


def test_no_more_is_refunded_than_was_paid(simulator: OwnSimulator) -> None:
    payment_id = simulator.adapter().start(new_charge(OK), is_repeated=False).payment_id
    simulator.ask("POST", "refunds", payment_intent=payment_id, amount=12_00)

    answer = httpx.post(
        f"{simulator.url}/v1/refunds",
        data={"payment_intent": payment_id, "amount": "35"},
        headers=simulator.headers,
    )

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "amount")
    assert simulator.ask("POST", "refunds", payment_intent=payment_id)["amount"] == 34


def test_an_event_that_was_not_accepted_is_sent_again(
    simulator: OwnSimulator, inbox: Inbox, inbox_server: HTTPServer
) -> None:
    refused: list[bytes] = []

    def take_the_second_time(request: Request) -> Response:
        if request.get_data() in refused:
            return inbox(request)
        refused.append(request.get_data())
        return Response(status=500)

    inbox_server.clear()
    inbox_server.expect_request("/inbox").respond_with_handler(take_the_second_time)
    charge = new_charge("cus_9/pm_declined")
    payment_id = simulator.adapter().start(charge, is_repeated=False).payment_id
    wait_until(lambda: len(inbox.events_of(payment_id)) == 1)

    simulator.ask("POST", f"events/{inbox.events_of(payment_id)[0]['id']}/retry")
    wait_until(lambda: len(inbox.events_of(payment_id)) == 2)

    assert inbox.types(payment_id) == ["payment_intent.payment_failed"] * 2
    assert len({event["id"] for event in inbox.events_of(payment_id)}) == 1


def test_an_event_that_was_not_sent_before_a_kill_is_sent_after_it(
    simulator: OwnSimulator, inbox: Inbox, inbox_server: HTTPServer
) -> None:
    inbox_server.clear()
    inbox_server.expect_request("/inbox").respond_with_data(status=503)
    payment_id = simulator.adapter().start(new_charge(OK), is_repeated=False).payment_id
    simulator.kill()
    inbox_server.clear()
    inbox_server.expect_request("/inbox", method="POST").respond_with_handler(inbox)

    simulator.start()

    wait_until(lambda: bool(inbox.events_of(payment_id)))


@pytest.mark.parametrize("is_taken", [True, False], ids=["taken", "not taken"])
def test_an_event_that_is_to_be_sent_again_while_it_is_sent_is_due_at_once(
    tmp_path: Path, *, is_taken: bool
) -> None:
    store = Store(tmp_path / "payments.db")
    with store.open() as books:
        books.tell("payment_intent.succeeded", {"id": "pi_1"})
    on_its_way = store.due("event")
    assert on_its_way

    with store.open() as books:
        Account(books, "").write(f"events/{on_its_way.id}/retry", {})
    store.note_sent(on_its_way, is_taken=is_taken)

    again = store.due("event")
    assert again
    assert again.id == on_its_way.id
