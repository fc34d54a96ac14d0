"""Stripe, through its own SDK.

Off-session: a PaymentIntent that is confirmed as it is made. On a page: a Checkout Session, which
lives for 24 hours. The charge's id is the idempotency key and in the metadata of both.

Stripe keeps an idempotency key for at least 24 hours and answers with what it answered first, an
error of its own too. So a repeated off-session charge is first looked for by its metadata, which
also finds one whose key is forgotten, and then asked for under its key, which also covers one that
is not listed yet. A page that is asked for again is the same page; after its day it is another
one, and nobody has seen the first, because its address is shown only after it was kept.

Amounts are in the currency's smallest unit as Stripe counts it, which is the minor unit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Annotated, Final, Literal, TypeVar

import httpx
import stripe
from pydantic import BaseModel, Field, ValidationError
from stripe.params import PaymentIntentCreateParams, PaymentIntentListParams
from stripe.params.checkout import SessionCreateParams, SessionListParams

from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.fields import Filled255
from metering.payment.vendors.gateway import (
    AUTHENTICATION_REQUIRED,
    CANCELED,
    CHARGE_KEY,
    DECLINED,
    EXPIRED,
    PAGE_ROWS,
    PAGES_MAX,
    UNREADABLE,
    ChargeAnswer,
    ChargeRequest,
    PageUrl,
    asked_since,
    best,
    error_of,
    too_many,
    word,
)

NAME: Final = "stripe"
PAGE_PREFIX: Final = "cs_"
_NOT_FOUND: Final = 404

# It would be sent with every request, and an id for it is written into the home directory.
stripe.enable_telemetry = False


class Reason(BaseModel):
    """Why a payment was declined."""

    code: str | None = None
    decline_code: str | None = None

    @property
    def failure(self) -> str:
        """Return the reason: the bank's own where it gave one."""
        return word(self.decline_code) or word(self.code) or DECLINED


class Intent(BaseModel):
    """What is read of a PaymentIntent."""

    id: Filled255
    status: str
    metadata: dict[str, str] = {}
    last_payment_error: Reason | None = None


class Session(BaseModel):
    """What is read of a Checkout Session; its payment is there as far as it was expanded."""

    id: Filled255
    status: Literal["open", "complete", "expired"]
    payment_status: str
    url: PageUrl | None = None
    metadata: dict[str, str] = {}
    payment_intent: Annotated[Intent | str, Field(union_mode="left_to_right")] | None = None


class Intents(BaseModel):
    """A page of PaymentIntents."""

    data: list[Intent]
    has_more: bool


class Sessions(BaseModel):
    """A page of Checkout Sessions."""

    data: list[Session]
    has_more: bool


class Decline(Reason):
    """The error of a 402, with the payment that was made for the attempt."""

    payment_intent: Intent | None = None


class Declined(BaseModel):
    """The body of a 402."""

    error: Decline


Read = TypeVar("Read", bound=BaseModel)
Listed = TypeVar("Listed", Intent, Session)


def answer_of_intent(intent: Intent, *, is_attended: bool) -> ChargeAnswer:
    """Return what a PaymentIntent says; `is_attended`: the customer is there and can go on."""
    if intent.status == "succeeded":
        return ChargeAnswer("succeeded", intent.id)
    if intent.status == "canceled":
        return ChargeAnswer("failed", intent.id, failure=CANCELED)
    if intent.status == "requires_payment_method" and not is_attended:
        # Without an error the attempt is still being made.
        if intent.last_payment_error is None:
            return ChargeAnswer("pending", intent.id)
        return ChargeAnswer("failed", intent.id, failure=intent.last_payment_error.failure)
    if intent.status == "requires_action" and not is_attended:
        return ChargeAnswer("failed", intent.id, failure=AUTHENTICATION_REQUIRED)
    return ChargeAnswer("pending", intent.id)


def answer_of_session(session: Session) -> ChargeAnswer:
    """Return what a Checkout Session says. A decline leaves it open: the customer may try again.

    Raises:
        GatewayUnavailableError: it is paid, but does not say by which payment.

    """
    intent = session.payment_intent
    if session.payment_status == "paid":
        payment_id = intent.id if isinstance(intent, Intent) else intent
        if payment_id is None:
            raise GatewayUnavailableError(NAME, UNREADABLE)
        return ChargeAnswer("succeeded", payment_id)
    if session.status == "expired":
        return ChargeAnswer("failed", session.id, failure=EXPIRED)
    if session.status == "complete" and isinstance(intent, Intent):
        ended = answer_of_intent(intent, is_attended=False)
        return ChargeAnswer(ended.status, session.id, failure=ended.failure)
    return ChargeAnswer("pending", session.id, url=session.url)


class StripeGateway:
    """A Stripe account. `base_url`: where its API is, if not at Stripe."""

    def __init__(self, http: httpx.Client, *, api_key: str, base_url: str | None) -> None:
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": base_url.rstrip("/")} if base_url else None,
            http_client=_Http(http),
            max_network_retries=0,
        )

    def start(self, charge: ChargeRequest, *, is_repeated: bool) -> ChargeAnswer:
        """Charge off-session, or open a page. See `PaymentGateway`."""
        with _heard():
            if charge.payment_method is None:
                return self._open_page(charge)
            customer, payment_method = _saved(charge.payment_method)
            if is_repeated and (found := self._find_intent(charge, customer)):
                return found
            return self._charge_now(charge, customer, payment_method)

    def look_up(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer | None:
        """Return what became of a charge. See `PaymentGateway`."""
        with _heard():
            if payment_id is not None:
                return self._retrieve(charge, payment_id)
            if charge.payment_method is None:
                return self._find_page(charge)
            customer, _ = _saved(charge.payment_method)
            return self._find_intent(charge, customer)

    def cancel(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer:
        """Cancel a payment, or expire a page. See `PaymentGateway`."""
        found = self.look_up(charge, payment_id)
        if found is None:
            return ChargeAnswer("failed", payment_id, failure=CANCELED)
        if found.status != "pending" or found.payment_id is None:
            return found
        try:
            with _heard():
                return self._stop(charge, found.payment_id)
        except GatewayRefusedError:
            # It cannot be stopped any more: it has ended meanwhile, or the bank is at it.
            return self.look_up(charge, found.payment_id) or found

    # --- steps ------------------------------------------------------------------------------

    def _charge_now(
        self, charge: ChargeRequest, customer: str, payment_method: str
    ) -> ChargeAnswer:
        params: PaymentIntentCreateParams = {
            "amount": charge.amount_minor,
            "currency": charge.currency.lower(),
            "customer": customer,
            "payment_method": payment_method,
            "off_session": True,
            "confirm": True,
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            "description": charge.description,
            "metadata": {CHARGE_KEY: charge.charge_id},
        }
        try:
            intent = self._client.v1.payment_intents.create(
                params, {"idempotency_key": charge.charge_id}
            )
        except stripe.CardError as error:
            return _answer_of_decline(error)
        return answer_of_intent(_read(Intent, intent), is_attended=False)

    def _open_page(self, charge: ChargeRequest) -> ChargeAnswer:
        if charge.return_url is None:
            raise GatewayRefusedError(NAME, "a page needs a return_url")
        params: SessionCreateParams = {
            "mode": "payment",
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": charge.currency.lower(),
                        "unit_amount": charge.amount_minor,
                        "product_data": {"name": charge.description},
                    },
                }
            ],
            "customer_email": charge.email,
            "client_reference_id": charge.charge_id,
            "success_url": charge.return_url,
            "cancel_url": charge.return_url,
            "metadata": {CHARGE_KEY: charge.charge_id},
            "payment_intent_data": {
                "description": charge.description,
                "metadata": {CHARGE_KEY: charge.charge_id},
            },
        }
        session = self._client.v1.checkout.sessions.create(
            params, {"idempotency_key": charge.charge_id}
        )
        return answer_of_session(_read(Session, session))

    def _retrieve(self, charge: ChargeRequest, payment_id: str) -> ChargeAnswer | None:
        try:
            if payment_id.startswith(PAGE_PREFIX):
                session = self._client.v1.checkout.sessions.retrieve(
                    payment_id, {"expand": ["payment_intent"]}
                )
                return answer_of_session(_read(Session, session))
            intent = self._client.v1.payment_intents.retrieve(payment_id)
        except stripe.InvalidRequestError as error:
            if error.http_status == _NOT_FOUND:
                return None
            raise
        return answer_of_intent(_read(Intent, intent), is_attended=charge.payment_method is None)

    def _stop(self, charge: ChargeRequest, payment_id: str) -> ChargeAnswer:
        if payment_id.startswith(PAGE_PREFIX):
            session = self._client.v1.checkout.sessions.expire(payment_id)
            return answer_of_session(_read(Session, session))
        intent = self._client.v1.payment_intents.cancel(payment_id)
        return answer_of_intent(_read(Intent, intent), is_attended=charge.payment_method is None)

    # --- search -----------------------------------------------------------------------------

    def _find_intent(self, charge: ChargeRequest, customer: str) -> ChargeAnswer | None:
        for page in self._intents(charge, customer):
            mine = [each for each in page if _is_for(charge, each.metadata)]
            if mine:
                return best(answer_of_intent(each, is_attended=False) for each in mine)
        return None

    def _find_page(self, charge: ChargeRequest) -> ChargeAnswer | None:
        for page in self._sessions(charge):
            mine = [each for each in page if _is_for(charge, each.metadata)]
            if mine:
                return best(map(answer_of_session, mine))
        return None

    def _intents(self, charge: ChargeRequest, customer: str) -> Iterator[list[Intent]]:
        """Go through the customer's payments since the charge was stored, the newest first."""
        params: PaymentIntentListParams = {
            "customer": customer,
            "created": {"gte": int(asked_since(charge).timestamp())},
            "limit": PAGE_ROWS,
        }
        for _ in range(PAGES_MAX):
            page = _read(Intents, self._client.v1.payment_intents.list(params))
            yield page.data
            if not page.has_more:
                return
            params["starting_after"] = _last(page.data).id
        raise too_many(NAME)

    def _sessions(self, charge: ChargeRequest) -> Iterator[list[Session]]:
        """Go through the account's pages since the charge was stored, the newest first."""
        params: SessionListParams = {
            "created": {"gte": int(asked_since(charge).timestamp())},
            "limit": PAGE_ROWS,
            "expand": ["data.payment_intent"],
        }
        for _ in range(PAGES_MAX):
            page = _read(Sessions, self._client.v1.checkout.sessions.list(params))
            yield page.data
            if not page.has_more:
                return
            params["starting_after"] = _last(page.data).id
        raise too_many(NAME)


def _is_for(charge: ChargeRequest, metadata: Mapping[str, str]) -> bool:
    return metadata.get(CHARGE_KEY) == charge.charge_id


def _saved(payment_method: str) -> tuple[str, str]:
    """Return the customer and the payment method of `cus_…/pm_…`."""
    customer, slash, method = payment_method.partition("/")
    if not (customer and slash and method):
        raise GatewayRefusedError(NAME, "a payment method is written cus_…/pm_…")
    return customer, method


def _answer_of_decline(error: stripe.CardError) -> ChargeAnswer:
    declined = Declined.model_validate(error.json_body).error
    intent = declined.payment_intent
    return ChargeAnswer("failed", None if intent is None else intent.id, failure=declined.failure)


def _last(of_page: Sequence[Listed]) -> Listed:
    """Return what a page ends with: one that is not the last has something."""
    if not of_page:
        raise GatewayUnavailableError(NAME, UNREADABLE)
    return of_page[-1]


def _read(model: type[Read], said: object) -> Read:
    """Return what we use of an answer, checked: the SDK takes any JSON for any object."""
    if not isinstance(said, stripe.StripeObject):
        raise GatewayUnavailableError(NAME, UNREADABLE)
    return model.model_validate(said.to_dict())


@contextmanager
def _heard() -> Iterator[None]:
    """Turn the SDK's errors into ours, without their texts: those can quote a key."""
    try:
        yield
    except stripe.APIConnectionError as error:
        raise GatewayUnavailableError(NAME, str(error.user_message)) from None
    except stripe.StripeError as error:
        raise error_of(NAME, error.http_status, error.code, getattr(error, "param", None)) from None
    except (ValidationError, JSONDecodeError, UnicodeDecodeError):
        raise GatewayUnavailableError(NAME, UNREADABLE) from None


class _Http(stripe.HTTPClient):
    """Carries the SDK's requests over a client of ours."""

    name = "httpx"

    def __init__(self, http: httpx.Client) -> None:
        super().__init__()
        self._http = http

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: str | None = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        try:
            answer = self._http.request(method, url, headers=headers, content=post_data)
        except httpx.TransportError as error:
            raise stripe.APIConnectionError(str(error)) from None  # type: ignore[no-untyped-call]
        return answer.text, answer.status_code, answer.headers

    def close(self) -> None:
        self._http.close()
