"""Dodo Payments, through its own SDK.

Off-session, a charge is made on an on-demand subscription, whose id is the payment method. On a
hosted page, it is a checkout session of the account's pay-what-you-want product, which lives for 24
hours and for one payment; the product must have a price in the currency of the charge.

Dodo has no idempotency keys. A payment carries the charge's id in its metadata. A repeated
off-session charge is first searched for among the payments of its subscription, and made only if
none is found. That misses a payment whose answer was lost and which is not listed yet: leave some
time between two attempts. Two attempts at once make two payments: let only one run at a time. A
repeated session is a new session; the customer never saw the first, because an address is shown
only after it is stored.

Nothing can be stopped: Dodo cancels no payment, and closes no session before its day is over.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final, TypeVar, cast

import dodopayments
import httpx
from dodopayments.types import Currency as DodoCurrency
from pydantic import AwareDatetime, BaseModel

from metering.clock import utc_now
from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.fields import CurrencyText, Filled255, Minor
from metering.ids import Currency
from metering.payment.facts import CHARGE_KEY
from metering.payment.vendors.gateway import (
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

NAME: Final = "dodo"
PAYMENT_PREFIX: Final = "pay_"
# How long a session takes payments, and some minutes for a payment that began in the last one.
SESSION_LIFE: Final = timedelta(hours=24, minutes=30)


class Payment(BaseModel):
    """A payment, in full or in a list, as far as it is read."""

    payment_id: Filled255
    status: str | None = None
    error_code: str | None = None
    # With tax, and less any discount.
    total_amount: Minor | None = None
    currency: CurrencyText | None = None
    metadata: dict[str, object] = {}


class PaymentList(BaseModel):
    """A page of a list of payments."""

    items: list[Payment]


class Session(BaseModel):
    """A checkout session that was looked up, as far as it is read."""

    id: Filled255
    created_at: AwareDatetime
    payment_id: Filled255 | None = None


class NewSession(BaseModel):
    """A checkout session that was made, as far as it is read."""

    session_id: Filled255
    checkout_url: PageUrl


class Charged(BaseModel):
    """A charge, as far as it is read: it does not tell whether it succeeded."""

    payment_id: Filled255


Read = TypeVar("Read", bound=BaseModel)


def answer_of_payment(payment: Payment) -> ChargeAnswer:
    """Return the answer in a payment. All but the three ends are pending."""
    if payment.status == "succeeded":
        return ChargeAnswer(
            "succeeded",
            payment.payment_id,
            amount_minor=payment.total_amount,
            currency=Currency(payment.currency.upper()) if payment.currency else None,
        )
    if payment.status == "failed":
        failure = safe_code(payment.error_code) or DECLINED
        return ChargeAnswer("failed", payment.payment_id, failure=failure)
    if payment.status == "cancelled":
        return ChargeAnswer("failed", payment.payment_id, failure=CANCELED)
    return ChargeAnswer("pending", payment.payment_id)


def answer_of_unpaid(session: Session, now: datetime) -> ChargeAnswer:
    """Return the answer in a session on which nothing was paid."""
    if now > session.created_at + SESSION_LIFE:
        return ChargeAnswer("failed", session.id, failure=EXPIRED)
    return ChargeAnswer("pending", session.id)


class DodoGateway(VendorGateway):
    """A Dodo account. `product_id`: what a session sells. `base_url`: if not live mode's."""

    name = NAME

    def __init__(
        self, http: httpx.Client, *, api_key: str, base_url: str | None, product_id: str | None
    ) -> None:
        self._product_id = product_id
        self._client = dodopayments.DodoPayments(
            bearer_token=api_key,
            # Both are given, so that neither comes from the environment.
            base_url=base_url or dodopayments.ENVIRONMENTS["live_mode"],
            webhook_key="",
            http_client=http,
            max_retries=0,
        )

    def _charge_now(self, charge: ChargeRequest, payment_method: str) -> ChargeAnswer:
        charged = self._client.subscriptions.charge(
            payment_method,
            product_price=charge.amount_minor,
            product_currency=cast("DodoCurrency", charge.currency),
            product_description=charge.description,
            metadata={CHARGE_KEY: charge.charge_id},
        )
        payment_id = _read(Charged, charged).payment_id
        try:
            return self.look_up(charge, payment_id) or ChargeAnswer("pending", payment_id)
        except (GatewayUnavailableError, GatewayRefusedError):
            # It is charged and its id is known: the next attempt looks it up.
            return ChargeAnswer("pending", payment_id)

    def _open_page(self, charge: ChargeRequest) -> ChargeAnswer:
        if self._product_id is None:
            raise GatewayRefusedError(NAME, "a page needs the account's product_id")
        made = self._client.checkout_sessions.create(
            product_cart=[
                {"product_id": self._product_id, "quantity": 1, "amount": charge.amount_minor}
            ],
            billing_currency=cast("DodoCurrency", charge.currency),
            customer={"email": charge.email, "name": charge.name},
            metadata={CHARGE_KEY: charge.charge_id},
            return_url=charge.return_url,
        )
        session = _read(NewSession, made)
        return ChargeAnswer("pending", session.session_id, url=session.checkout_url)

    def _retrieve(self, charge: ChargeRequest, payment_id: str) -> ChargeAnswer | None:
        try:
            if charge.payment_method is None and not payment_id.startswith(PAYMENT_PREFIX):
                return self._session(payment_id)
            return self._payment(payment_id)
        except dodopayments.NotFoundError:
            return None

    def _stop(self, charge: ChargeRequest, found: ChargeAnswer, payment_id: str) -> ChargeAnswer:  # noqa: ARG002
        return found

    def _payment(self, payment_id: str) -> ChargeAnswer:
        return answer_of_payment(_read(Payment, self._client.payments.retrieve(payment_id)))

    def _session(self, session_id: str) -> ChargeAnswer:
        session = _read(Session, self._client.checkout_sessions.retrieve(session_id))
        if session.payment_id is None:
            return answer_of_unpaid(session, utc_now())
        return self._payment(session.payment_id)

    def _find(self, charge: ChargeRequest) -> ChargeAnswer | None:
        answer = find_answer(charge, self._payments(charge), answer_of_payment)
        if answer is None or answer.status != "failed" or answer.payment_id is None:
            return answer
        # Only the payment itself has the reason of its failure.
        return self._payment(answer.payment_id)

    def _payments(self, charge: ChargeRequest) -> Iterator[list[Payment]]:
        """Go through pages of payments, up to the first one that is not full.

        The SDK's own iterator goes from page 0 to page 2.
        """
        by_product = None if charge.payment_method else self._product_id
        for number in range(PAGES_MAX):
            listed = self._client.payments.list(
                created_at_gte=search_start(charge),
                subscription_id=charge.payment_method or dodopayments.omit,
                product_id=by_product or dodopayments.omit,
                page_number=number,
                page_size=PAGE_ROWS,
            )
            page = _read(PaymentList, listed).items
            yield page
            if len(page) < PAGE_ROWS:
                return
        raise too_many(NAME)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except dodopayments.APIStatusError as error:
            code = error.body.get("code") if isinstance(error.body, dict) else None
            raise error_of(NAME, error.status_code, code) from None
        except dodopayments.APIConnectionError as error:
            cause = error.__cause__
            reason = str(cause) if isinstance(cause, httpx.TransportError) else type(cause).__name__
            raise GatewayUnavailableError(NAME, reason) from None
        # The SDK raises AttributeError for a list that is not one.
        except (dodopayments.APIError, AttributeError):
            raise GatewayUnavailableError(NAME, UNREADABLE) from None


def _read(model: type[Read], answer: object) -> Read:
    """Return an answer as far as it is read, checked: the SDK takes any text for any object."""
    if not isinstance(answer, dodopayments.BaseModel):
        raise GatewayUnavailableError(NAME, UNREADABLE)
    return model.model_validate(answer.to_dict(warnings=False))
