"""Dodo Payments, through its own SDK.

Off-session: a charge of an on-demand subscription, whose id is the payment method. On a page: a
checkout session of the account's pay-what-you-want product, which lives for 24 hours and for one
payment; the product has to be priced in the currency of the charge.

Dodo knows no idempotency keys. A payment carries the charge's id in its metadata, and a repeated
off-session charge is first looked for among the payments of its subscription; it is charged only
if none is found. What that does not cover: a charge whose answer was lost, and which is not listed
yet when it is asked for again. So leave some time between two attempts. Two that run at once are
two charges, so let one at a time have a charge. A page that is asked for again is another one, and
nobody has seen the first, because its address is shown only after it was kept.

Nothing here can be stopped: Dodo cancels no payment, and closes no page before its day is over.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from json import JSONDecodeError
from typing import Final, TypeVar, cast

import dodopayments
import httpx
from dodopayments.types import Currency as DodoCurrency
from pydantic import AwareDatetime, BaseModel, ValidationError

from metering.clock import utc_now
from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.fields import CurrencyText, Filled255, Minor
from metering.ids import Currency
from metering.payment.vendors.gateway import (
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

NAME: Final = "dodo"
PAYMENT_PREFIX: Final = "pay_"
# How long a page can be paid on; with some minutes for a payment that began in the last one.
PAGE_LIFE: Final = timedelta(hours=24, minutes=30)


class Payment(BaseModel):
    """What is read of a payment, in full or in a list."""

    payment_id: Filled255
    status: str | None = None
    error_code: str | None = None
    # With the tax, and less what a discount took off.
    total_amount: Minor | None = None
    currency: CurrencyText | None = None
    metadata: dict[str, object] = {}


class PaymentList(BaseModel):
    """A page of payments."""

    items: list[Payment]


class Page(BaseModel):
    """What is read of a checkout session that was looked up."""

    id: Filled255
    created_at: AwareDatetime
    payment_id: Filled255 | None = None


class NewPage(BaseModel):
    """What is read of a checkout session that was made."""

    session_id: Filled255
    checkout_url: PageUrl


class Charged(BaseModel):
    """What is read of a charge: whether it succeeded is not in it."""

    payment_id: Filled255


Read = TypeVar("Read", bound=BaseModel)


def answer_of_payment(payment: Payment) -> ChargeAnswer:
    """Return what a payment says. Whatever is no end is pending: the customer can be asked."""
    if payment.status == "succeeded":
        return ChargeAnswer(
            "succeeded",
            payment.payment_id,
            amount_minor=payment.total_amount,
            currency=Currency(payment.currency.upper()) if payment.currency else None,
        )
    if payment.status == "failed":
        failure = word(payment.error_code) or DECLINED
        return ChargeAnswer("failed", payment.payment_id, failure=failure)
    if payment.status == "cancelled":
        return ChargeAnswer("failed", payment.payment_id, failure=CANCELED)
    return ChargeAnswer("pending", payment.payment_id)


def answer_of_unpaid(page: Page, now: datetime) -> ChargeAnswer:
    """Return what a page says on which nothing was paid."""
    if now > page.created_at + PAGE_LIFE:
        return ChargeAnswer("failed", page.id, failure=EXPIRED)
    return ChargeAnswer("pending", page.id)


class DodoGateway:
    """A Dodo account. `product_id`: what is sold on a page. `base_url`: if not live mode's."""

    def __init__(
        self, http: httpx.Client, *, api_key: str, base_url: str | None, product_id: str | None
    ) -> None:
        self._product_id = product_id
        self._client = dodopayments.DodoPayments(
            bearer_token=api_key,
            # Both given, so that none comes from the environment.
            base_url=base_url or dodopayments.ENVIRONMENTS["live_mode"],
            webhook_key="",
            http_client=http,
            max_retries=0,
        )

    def start(self, charge: ChargeRequest, *, is_repeated: bool) -> ChargeAnswer:
        """Charge a subscription, or open a page. See `PaymentGateway`."""
        with _heard():
            if charge.payment_method is None:
                return self._open_page(charge)
            if is_repeated and (found := self._find(charge)):
                return found
            payment_id = self._charge_now(charge, charge.payment_method)
        try:
            return self.look_up(charge, payment_id) or ChargeAnswer("pending", payment_id)
        except (GatewayUnavailableError, GatewayRefusedError):
            # It is charged, and known by its id: what became of it is asked for another time.
            return ChargeAnswer("pending", payment_id)

    def look_up(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer | None:
        """Return what became of a charge. See `PaymentGateway`."""
        with _heard():
            if payment_id is None:
                return self._find(charge)
            try:
                if charge.payment_method is None and not payment_id.startswith(PAYMENT_PREFIX):
                    return self._page(payment_id)
                return self._payment(payment_id)
            except dodopayments.NotFoundError:
                return None

    def cancel(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer:
        """Return what became of a charge: a pending one stays so, Dodo stops none."""
        return self.look_up(charge, payment_id) or ChargeAnswer(
            "failed", payment_id, failure=CANCELED
        )

    # --- steps ------------------------------------------------------------------------------

    def _charge_now(self, charge: ChargeRequest, subscription_id: str) -> str:
        said = self._client.subscriptions.charge(
            subscription_id,
            product_price=charge.amount_minor,
            product_currency=cast("DodoCurrency", charge.currency),
            product_description=charge.description,
            metadata={CHARGE_KEY: charge.charge_id},
        )
        return _read(Charged, said).payment_id

    def _open_page(self, charge: ChargeRequest) -> ChargeAnswer:
        if self._product_id is None:
            raise GatewayRefusedError(NAME, "a page needs the account's product_id")
        said = self._client.checkout_sessions.create(
            product_cart=[
                {
                    "product_id": self._product_id,
                    "quantity": 1,
                    "amount": charge.amount_minor,
                }
            ],
            billing_currency=cast("DodoCurrency", charge.currency),
            customer={"email": charge.email, "name": charge.name},
            metadata={CHARGE_KEY: charge.charge_id},
            return_url=charge.return_url,
        )
        page = _read(NewPage, said)
        return ChargeAnswer("pending", page.session_id, url=page.checkout_url)

    def _payment(self, payment_id: str) -> ChargeAnswer:
        return answer_of_payment(_read(Payment, self._client.payments.retrieve(payment_id)))

    def _page(self, page_id: str) -> ChargeAnswer:
        page = _read(Page, self._client.checkout_sessions.retrieve(page_id))
        if page.payment_id is None:
            return answer_of_unpaid(page, utc_now())
        return self._payment(page.payment_id)

    def _find(self, charge: ChargeRequest) -> ChargeAnswer | None:
        for page in self._payments(charge):
            mine = [each for each in page if _is_for(charge, each.metadata)]
            if mine:
                answer = best(map(answer_of_payment, mine))
                # Why one failed is only in the payment itself.
                if answer.status == "failed" and answer.payment_id is not None:
                    return self._payment(answer.payment_id)
                return answer
        return None

    def _payments(self, charge: ChargeRequest) -> Iterator[list[Payment]]:
        """Go through the payments that can be the charge's, to the first page that is not full.

        Not by the SDK's own iterator, which goes from page 0 to page 2.
        """
        by_product = None if charge.payment_method else self._product_id
        for number in range(PAGES_MAX):
            said = self._client.payments.list(
                created_at_gte=asked_since(charge),
                subscription_id=charge.payment_method or dodopayments.omit,
                product_id=by_product or dodopayments.omit,
                page_number=number,
                page_size=PAGE_ROWS,
            )
            page = _read(PaymentList, said).items
            yield page
            if len(page) < PAGE_ROWS:
                return
        raise too_many(NAME)


def _is_for(charge: ChargeRequest, metadata: Mapping[str, object]) -> bool:
    return metadata.get(CHARGE_KEY) == charge.charge_id


def _read(model: type[Read], said: object) -> Read:
    """Return what we use of an answer, checked: the SDK takes any text for any object."""
    if not isinstance(said, dodopayments.BaseModel):
        raise GatewayUnavailableError(NAME, UNREADABLE)
    return model.model_validate(said.to_dict(warnings=False))


@contextmanager
def _heard() -> Iterator[None]:
    """Turn the SDK's errors into ours, without their texts: those can quote a request."""
    try:
        yield
    except dodopayments.APIStatusError as error:
        code = error.body.get("code") if isinstance(error.body, dict) else None
        raise error_of(NAME, error.status_code, code) from None
    except dodopayments.APIConnectionError as error:
        cause = error.__cause__
        reason = str(cause) if isinstance(cause, httpx.TransportError) else type(cause).__name__
        raise GatewayUnavailableError(NAME, reason) from None
    except (
        dodopayments.APIError,
        ValidationError,
        JSONDecodeError,
        UnicodeDecodeError,
        AttributeError,  # what the SDK says of a list that is none
    ):
        raise GatewayUnavailableError(NAME, UNREADABLE) from None
