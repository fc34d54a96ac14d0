"""The pure parts of the payment gateways."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from metering.clock import utc_now
from metering.errors import ConfigurationError, GatewayRefusedError, GatewayUnavailableError
from metering.ids import ChargeId, made_at, new_id
from metering.payment.vendors.dodo.gateway import SESSION_LIFE, answer_of_unpaid
from metering.payment.vendors.dodo.gateway import Session as CheckoutSession
from metering.payment.vendors.gateway import (
    ChargeAnswer,
    decisive,
    error_of,
    safe_code,
    search_start,
)
from metering.payment.vendors.registry import gateway_of
from metering.payment.vendors.stripe.gateway import (
    Intent,
    Session,
    answer_of_intent,
    answer_of_session,
)
from metering.purchase.reversal_target import PaymentStatus, Provider
from support.own_simulator import new_account, new_charge

URL = "http://127.0.0.1:1"


def test_an_id_holds_the_time_of_its_creation() -> None:
    before = utc_now()

    made = made_at(new_id("chg"))

    assert before - timedelta(milliseconds=1) <= made <= utc_now()


def test_a_malformed_id_has_no_time() -> None:
    with pytest.raises(ValueError, match="ULID"):
        made_at("chg_1")


def test_a_charge_is_looked_for_from_an_hour_before_it_was_stored() -> None:
    charge = new_charge(charge_id=ChargeId("chg_01ARZ3NDEKTSV4RRFFQ69G5FAV"))

    assert search_start(charge) == datetime(2016, 7, 30, 22, 54, 10, 259000, tzinfo=UTC)


def test_the_repr_of_a_charge_does_not_show_the_payer() -> None:
    shown = repr(new_charge(email="secret@example.com", name="Secret Name"))

    assert "secret@example.com" not in shown
    assert "Secret Name" not in shown


@pytest.mark.parametrize(
    ("statuses", "decides"),
    [("fps", "s"), ("pf", "p"), ("fp", "p"), ("sp", "s"), ("f", "f")],
)
def test_success_goes_before_pending_and_pending_before_failure(
    statuses: str, decides: str
) -> None:
    names: dict[str, PaymentStatus] = {"f": "failed", "p": "pending", "s": "succeeded"}

    answer = decisive(ChargeAnswer(names[each], f"pay_{each}") for each in statuses)

    assert answer.status == names[decides]


@pytest.mark.parametrize("code", ["card_declined", "INSUFFICIENT_FUNDS", "items[0].price", "a-b"])
def test_a_code_is_shown(code: str) -> None:
    assert safe_code(code) == code


@pytest.mark.parametrize("text", [None, "", "Your card …4242", "a\0", "x" * 65, 7, ["a"]])
def test_text_that_is_not_a_code_is_not_shown(text: object) -> None:
    assert safe_code(text) is None


@pytest.mark.parametrize("status", [None, 200, 408, 409, 425, 429, 500, 502, 599])
def test_a_status_that_leaves_the_outcome_open(status: int | None) -> None:
    assert isinstance(error_of("stripe", status), GatewayUnavailableError)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 402, 403, 404, 422])
def test_a_status_that_is_final(status: int) -> None:
    assert isinstance(error_of("stripe", status), GatewayRefusedError)


# --- Stripe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["requires_payment_method", "requires_action"])
def test_a_present_customer_may_continue(status: str) -> None:
    intent = Intent.model_validate(
        {"id": "pi_1", "status": status, "last_payment_error": {"code": "card_declined"}}
    )

    assert answer_of_intent(intent, is_attended=True).status == "pending"
    assert answer_of_intent(intent, is_attended=False).status == "failed"


def test_an_attempt_without_an_error_is_pending() -> None:
    intent = Intent(id="pi_1", status="requires_payment_method")

    assert answer_of_intent(intent, is_attended=False) == ChargeAnswer("pending", "pi_1")


def test_a_decline_without_a_code_is_named_a_decline() -> None:
    intent = Intent.model_validate(
        {"id": "pi_1", "status": "requires_payment_method", "last_payment_error": {"code": "no …"}}
    )

    assert answer_of_intent(intent, is_attended=False).failure == "declined"


def test_a_paid_page_without_its_payment_has_no_outcome() -> None:
    session = Session(id="cs_1", status="complete", payment_status="paid")

    with pytest.raises(GatewayUnavailableError):
        answer_of_session(session)


# --- Dodo -----------------------------------------------------------------------------------------


def test_a_session_is_valid_to_the_end_of_its_day() -> None:
    session = CheckoutSession(id="cks_1", created_at=utc_now())
    end = session.created_at + SESSION_LIFE

    assert answer_of_unpaid(session, end).status == "pending"
    assert answer_of_unpaid(session, end + timedelta(microseconds=1)).failure == "expired"


# --- accounts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["stripe", "dodo"])
@pytest.mark.parametrize("api_key", [None, "", "a b", "a\nb", "schlüssel"])
def test_an_account_without_a_good_key_has_no_gateway(
    provider: Provider, api_key: str | None
) -> None:
    with pytest.raises(ConfigurationError, match="api_key"):
        gateway_of(new_account(provider, api_key, URL))


@pytest.mark.parametrize("base_url", ["", "ftp://x.example", "https://", "https://u:p@x.example"])
def test_an_account_without_a_good_address_has_no_gateway(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        gateway_of(new_account("stripe", base_url=base_url))


@pytest.mark.parametrize("provider", ["shop", "local"])
def test_an_account_of_a_provider_that_this_version_does_not_know_has_no_gateway(
    provider: Provider,
) -> None:
    with pytest.raises(GatewayRefusedError, match="does not know the provider"):
        gateway_of(new_account(provider, base_url=URL))


@pytest.mark.parametrize("provider", ["stripe", "dodo"])
def test_a_vendors_account_needs_no_address(provider: Provider) -> None:
    assert gateway_of(replace(new_account(provider), base_url=None)) is not None
