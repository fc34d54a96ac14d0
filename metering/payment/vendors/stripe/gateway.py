"""Stripe, through its own SDK.

Off-session, a charge is a PaymentIntent that is confirmed as it is made. On a hosted page, it is a
Checkout Session, which lives for 24 hours. The charge's id is the idempotency key of both and is in
their metadata.

Stripe keeps an idempotency key for at least 24 hours and repeats its first answer, even an error.
So a repeated off-session charge is first searched for by its metadata, which also finds a payment
whose key is forgotten. Then it is requested under its key, which also covers a payment that is not
listed yet. A repeated session is the same session. After its day it is a new one; the customer
never saw the first, because an address is shown only after it is stored.

Amounts are in the currency's smallest unit as Stripe counts it, which is the minor unit.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Final, Generic, Literal, TypeVar

import httpx
import stripe
from pydantic import BaseModel, Field
from stripe.params import PaymentIntentCreateParams, PaymentIntentListParams
from stripe.params.checkout import SessionCreateParams, SessionListParams

from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.fields import Filled255
from metering.payment.facts import CHARGE_KEY
from metering.payment.vendors.gateway import (
    AUTHENTICATION_REQUIRED,
    CANCELED,
    DECLINED,
    EXPIRED,
    PAGE_ROWS,
    PAGES_MAX,
    UNREADABLE,
    ChargeAnswer,
    ChargeRequest,
    PageUrl,
    VendorGateway,
    error_of,
    find_answer,
    safe_code,
    search_start,
    too_many,
)

NAME: Final = "stripe"
SESSION_PREFIX: Final = "cs_"
_NOT_FOUND: Final = 404

# Telemetry goes with every request, and writes an id into the home directory.
stripe.enable_telemetry = False


class Reason(BaseModel):
    """Why a payment was declined."""

    code: str | None = None
    decline_code: str | None = None

    @property
    def failure(self) -> str:
        """Return the code: the bank's own if it gave one."""
        return safe_code(self.decline_code) or safe_code(self.code) or DECLINED


class Intent(BaseModel):
    """A PaymentIntent, as far as it is read."""

    id: Filled255
    status: str
    metadata: dict[str, str] = {}
    last_payment_error: Reason | None = None


class Session(BaseModel):
    """A Checkout Session, as far as it is read; it holds its payment only if that was expanded."""

    id: Filled255
    status: Literal["open", "complete", "expired"]
    payment_status: str
    url: PageUrl | None = None
    metadata: dict[str, str] = {}
    payment_intent: Annotated[Intent | str, Field(union_mode="left_to_right")] | None = None


Listed = TypeVar("Listed", Intent, Session)


class ListPage(BaseModel, Generic[Listed]):
    """A page of a list."""

    data: list[Listed]
    has_more: bool


class Decline(Reason):
    """The error of a 402, with the payment that was made for the attempt."""

    payment_intent: Intent | None = None


class Declined(BaseModel):
    """The body of a 402."""

    error: Decline


Read = TypeVar("Read", bound=BaseModel)
ListParams = TypeVar("ListParams", PaymentIntentListParams, SessionListParams)


def answer_of_intent(intent: Intent, *, is_attended: bool) -> ChargeAnswer:
    """Return the answer in a PaymentIntent; `is_attended`: the customer is there to go on."""
    if intent.status == "succeeded":
        return ChargeAnswer("succeeded", intent.id)
    if intent.status == "canceled":
        return ChargeAnswer("failed", intent.id, failure=CANCELED)
    if intent.status == "requires_payment_method" and not is_attended:
        # Without an error the attempt is still running.
        if intent.last_payment_error is None:
            return ChargeAnswer("pending", intent.id)
        return ChargeAnswer("failed", intent.id, failure=intent.last_payment_error.failure)
    if intent.status == "requires_action" and not is_attended:
        return ChargeAnswer("failed", intent.id, failure=AUTHENTICATION_REQUIRED)
    return ChargeAnswer("pending", intent.id)


def answer_of_session(session: Session) -> ChargeAnswer:
    """Return the answer in a Checkout Session. After a decline it is open: a customer can retry.

    Raises: GatewayUnavailableError if it is paid but does not name its payment.
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


class StripeGateway(VendorGateway):
    """A Stripe account. `base_url`: the address of the API, if not at Stripe."""

    name = NAME

    def __init__(self, http: httpx.Client, *, api_key: str, base_url: str | None) -> None:
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": base_url.rstrip("/")} if base_url else None,
            http_client=_Http(http),
            max_network_retries=0,
        )

    def _charge_now(self, charge: ChargeRequest, payment_method: str) -> ChargeAnswer:
        customer, method = _saved(payment_method)
        params: PaymentIntentCreateParams = {
            "amount": charge.amount_minor,
            "currency": charge.currency.lower(),
            "customer": customer,
            "payment_method": method,
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
            if payment_id.startswith(SESSION_PREFIX):
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

    def _stop(self, charge: ChargeRequest, found: ChargeAnswer, payment_id: str) -> ChargeAnswer:  # noqa: ARG002
        if payment_id.startswith(SESSION_PREFIX):
            session = self._client.v1.checkout.sessions.expire(payment_id)
            return answer_of_session(_read(Session, session))
        intent = self._client.v1.payment_intents.cancel(payment_id)
        return answer_of_intent(_read(Intent, intent), is_attended=charge.payment_method is None)

    def _find(self, charge: ChargeRequest) -> ChargeAnswer | None:
        if charge.payment_method is None:
            return self._find_session(charge)
        customer, _ = _saved(charge.payment_method)
        params: PaymentIntentListParams = {
            "customer": customer,
            "created": {"gte": int(search_start(charge).timestamp())},
            "limit": PAGE_ROWS,
        }
        pages = _pages(ListPage[Intent], self._client.v1.payment_intents.list, params)
        return find_answer(charge, pages, lambda each: answer_of_intent(each, is_attended=False))

    def _find_session(self, charge: ChargeRequest) -> ChargeAnswer | None:
        params: SessionListParams = {
            "created": {"gte": int(search_start(charge).timestamp())},
            "limit": PAGE_ROWS,
            "expand": ["data.payment_intent"],
        }
        pages = _pages(ListPage[Session], self._client.v1.checkout.sessions.list, params)
        return find_answer(charge, pages, answer_of_session)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except stripe.APIConnectionError as error:
            raise GatewayUnavailableError(NAME, str(error.user_message)) from None
        except stripe.StripeError as error:
            codes = (error.code, getattr(error, "param", None))
            raise error_of(NAME, error.http_status, *codes) from None


def _pages(
    model: type[ListPage[Listed]], list_: Callable[[ListParams], object], params: ListParams
) -> Iterator[list[Listed]]:
    """Go through a list since the charge was stored, the newest first."""
    for _ in range(PAGES_MAX):
        page = _read(model, list_(params))
        yield page.data
        if not page.has_more:
            return
        if not page.data:
            raise GatewayUnavailableError(NAME, UNREADABLE)
        params["starting_after"] = page.data[-1].id
    raise too_many(NAME)


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


def _read(model: type[Read], answer: object) -> Read:
    """Return an answer as far as it is read, checked: the SDK takes any JSON for any object."""
    if not isinstance(answer, stripe.StripeObject):
        raise GatewayUnavailableError(NAME, UNREADABLE)
    return model.model_validate(answer.to_dict())


class _Http(stripe.HTTPClient):
    """Sends the SDK's requests through our client."""

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
