"""The calls that every payment provider answers, and the forms of its answers.

A charge is requested at least once and must be made at most once. So its id goes to the provider
with it: as the idempotency key where the provider has such keys, and in the metadata of the
payment, by which a payment is found again if the answer was lost.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from json import JSONDecodeError
from typing import Annotated, ClassVar, Final, Literal, Protocol, TypeVar

import httpx
from pydantic import AfterValidator, StringConstraints, ValidationError

from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.ids import ChargeId, Currency, CustomerId, made_at
from metering.payment.facts import CHARGE_KEY
from metering.purchase.reversal_target import Provider

# Providers that make one payment for all requests with the same idempotency key, even at once.
IDEMPOTENT_PROVIDERS: Final[tuple[Provider, ...]] = ("stripe",)
# Why a charge failed, in words that all providers share; others are the provider's own codes.
AUTHENTICATION_REQUIRED: Final = "authentication_required"
CANCELED: Final = "canceled"
EXPIRED: Final = "expired"
DECLINED: Final = "declined"
# A payment is searched for from this long before its charge was stored: clocks differ.
CLOCK_SKEW: Final = timedelta(hours=1)
# How many pages of payments a search reads, and the rows of each. With these limits no call of a
# gateway makes more than four requests, and it ends before the time limit of its task.
PAGES_MAX: Final = 2
PAGE_ROWS: Final = 100
UNREADABLE: Final = "its answer cannot be read"
_TOO_MANY: Final = "there are too many payments to look through"
_CODE: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_URL_CHARS_MAX: Final = 4096
# Statuses below 500 after which the same request may succeed: a conflict with a request that is
# still running, a time limit, a rate limit.
_REPEATABLE: Final = frozenset({408, 409, 425, 429})

ChargeStatus = Literal["pending", "succeeded", "failed"]


@dataclass(frozen=True, slots=True)
class GatewayAccount:
    """The part of a provider account that its gateway needs; the key is opened.

    `base_url`: where the API is, if not where the vendor's SDK looks for it. `product_id`: the
    product that a hosted page sells (Dodo).
    """

    provider: Provider
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    product_id: str | None = None
    # The key was sealed with a vault key that this process lacks. The operator can repair that.
    is_unreadable: bool = False


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """A charge to make; the amount is in minor units.

    `payment_method`: a saved one, charged without the customer, as the provider writes it (Stripe:
    `cus_…/pm_…`, Dodo: an on-demand subscription). None: the customer pays on a hosted page, and
    comes back to `return_url`.
    """

    charge_id: ChargeId
    amount_minor: int
    currency: Currency
    customer_id: CustomerId
    email: str = field(repr=False)
    name: str = field(repr=False)
    payment_method: str | None
    description: str
    return_url: str | None


@dataclass(frozen=True, slots=True)
class ChargeAnswer:
    """The state of a charge at the provider.

    `payment_id`: the provider's id of the payment, or of the hosted page while nothing was paid on
    it. `url`: the hosted page. `failure`: a short code. `amount_minor`, `currency`: what was paid,
    where tax or a discount can change it; None: as requested.
    """

    status: ChargeStatus
    payment_id: str | None
    url: str | None = None
    failure: str | None = None
    amount_minor: int | None = None
    currency: Currency | None = None


class PaymentGateway(Protocol):
    """A provider account. Every call uses the network, so none belongs inside a transaction.

    Each raises `GatewayUnavailableError` if the outcome is unknown, and `GatewayRefusedError` if
    the provider will refuse the request every time.
    """

    def start(self, charge: ChargeRequest, *, is_repeated: bool) -> ChargeAnswer:
        """Charge, or open a hosted page; once, however often it is called for a charge.

        `is_repeated`: an earlier call may have reached the provider. A decline is an answer, not an
        error.
        """
        ...

    def look_up(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer | None:
        """Return the state of a charge. Returns None if the provider does not know it."""
        ...

    def cancel(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer:
        """Stop a pending charge, which is not started again, and return its state.

        That is `succeeded` if it was paid before, and `pending` if it cannot be stopped.
        """
        ...


class VendorGateway(ABC):
    """The steps that gateways over a vendor's SDK share. See `PaymentGateway` for each."""

    name: ClassVar[str]

    def start(self, charge: ChargeRequest, *, is_repeated: bool) -> ChargeAnswer:
        """Charge a saved payment method, or open a hosted page."""
        with self._errors():
            if charge.payment_method is None:
                return self._open_page(charge)
            if is_repeated and (found := self._find(charge)):
                return found
            return self._charge_now(charge, charge.payment_method)

    def look_up(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer | None:
        """Retrieve a charge by its payment or page, or find it by its metadata."""
        with self._errors():
            return self._find(charge) if payment_id is None else self._retrieve(charge, payment_id)

    def cancel(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer:
        """Look a charge up, and stop it if it is pending."""
        found = self.look_up(charge, payment_id)
        if found is None:
            return ChargeAnswer("failed", payment_id, failure=CANCELED)
        if found.status != "pending" or found.payment_id is None:
            return found
        try:
            with self._errors():
                return self._stop(charge, found, found.payment_id)
        except GatewayRefusedError:
            # It cannot be stopped any more: it has ended, or the bank is working on it.
            return self.look_up(charge, found.payment_id) or found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with self._translated_errors():
                yield
        except (ValidationError, JSONDecodeError, UnicodeDecodeError):
            raise GatewayUnavailableError(self.name, UNREADABLE) from None

    @abstractmethod
    def _translated_errors(self) -> AbstractContextManager[None]:
        """Turn the SDK's errors into ours, without their texts, which can quote a key."""

    @abstractmethod
    def _charge_now(self, charge: ChargeRequest, payment_method: str) -> ChargeAnswer:
        """Charge a saved payment method."""

    @abstractmethod
    def _open_page(self, charge: ChargeRequest) -> ChargeAnswer:
        """Open a hosted page."""

    @abstractmethod
    def _find(self, charge: ChargeRequest) -> ChargeAnswer | None:
        """Search for a payment or page with the id of the charge in its metadata."""

    @abstractmethod
    def _retrieve(self, charge: ChargeRequest, payment_id: str) -> ChargeAnswer | None:
        """Return the state of a payment or page. Returns None if the provider does not know it."""

    @abstractmethod
    def _stop(self, charge: ChargeRequest, found: ChargeAnswer, payment_id: str) -> ChargeAnswer:
        """Stop a charge that was found pending, if the provider can."""


class _HasMetadata(Protocol):
    @property
    def metadata(self) -> Mapping[str, object]: ...


Found = TypeVar("Found", bound=_HasMetadata)


def find_answer(
    charge: ChargeRequest,
    pages: Iterable[Iterable[Found]],
    answer_of: Callable[[Found], ChargeAnswer],
) -> ChargeAnswer | None:
    """Return the answer of the first page with a payment of this charge, the one that decides."""
    for page in pages:
        answers = [
            answer_of(each) for each in page if each.metadata.get(CHARGE_KEY) == charge.charge_id
        ]
        if answers:
            return decisive(answers)
    return None


def decisive(answers: Iterable[ChargeAnswer]) -> ChargeAnswer:
    """Return the answer that decides among those of one charge: a success before all others."""
    ranks = ("failed", "pending", "succeeded")
    return max(answers, key=lambda answer: ranks.index(answer.status))


def search_start(charge: ChargeRequest) -> datetime:
    """Return a moment before which no payment of this charge was made."""
    return made_at(charge.charge_id) - CLOCK_SKEW


def safe_code(text: object) -> str | None:
    """Return the text if it is a code. Returns None for sentences: they can quote a key or card."""
    return text if isinstance(text, str) and _CODE.fullmatch(text) else None


def error_of(
    provider: str, status: int | None, *codes: object
) -> GatewayUnavailableError | GatewayRefusedError:
    """Return the error that an answer of this HTTP status means.

    A redirect is not followed, because it would take the key along: it counts as a refusal.
    """
    known = ", ".join(code for code in map(safe_code, codes) if code)
    reason = f"it answered {status}" + (f" ({known})" if known else "")
    is_final = status is not None and (
        httpx.codes.is_client_error(status) or httpx.codes.is_redirect(status)
    )
    if is_final and status not in _REPEATABLE:
        return GatewayRefusedError(provider, reason)
    return GatewayUnavailableError(provider, reason)


def too_many(provider: str) -> GatewayUnavailableError:
    """Return the error of a search that ended at its limit, so that the payment may exist."""
    return GatewayUnavailableError(provider, _TOO_MANY)


def _is_page(url: str) -> str:
    """Refuse a text that is not the address of a page: a customer's browser is sent there."""
    if not url.startswith(("https://", "http://")) or not url.isprintable() or " " in url:
        raise ValueError("is not the URL of a page")
    return url


# The address of a hosted page, in an answer.
PageUrl = Annotated[str, StringConstraints(max_length=_URL_CHARS_MAX), AfterValidator(_is_page)]
