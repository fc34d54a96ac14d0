"""What a payment provider is asked, and what it answers, whichever it is.

A charge is asked for at least once and has to be made at most once: its id goes to the provider
with it, as the idempotency key where the provider knows one, and in the metadata of the payment,
by which a payment is found again whose answer was lost.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal, Protocol

import httpx
from pydantic import AfterValidator, StringConstraints

from metering.errors import GatewayRefusedError, GatewayUnavailableError
from metering.ids import ChargeId, Currency, CustomerId, made_at

# The metadata of a payment that names the charge that it was made for.
CHARGE_KEY: Final = "gullak_charge_id"
# Providers that make one payment of all requests with one idempotency key, also of two at once.
KEEPS_KEYS: Final = ("local", "stripe")
# Why a charge failed, in words that all providers share; others are the provider's own codes.
AUTHENTICATION_REQUIRED: Final = "authentication_required"
CANCELED: Final = "canceled"
EXPIRED: Final = "expired"
DECLINED: Final = "declined"
# A payment is looked for from this long before its charge was stored: clocks differ.
CLOCK_SKEW: Final = timedelta(hours=1)
# Payments that are looked through for one of ours: pages, and the rows of each. With them no call
# of a gateway is more than four exchanges, which end before a task's time does.
PAGES_MAX: Final = 2
PAGE_ROWS: Final = 100
UNREADABLE: Final = "its answer cannot be read"
_TOO_MANY: Final = "there are too many payments to look through"
_WORD: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_URL_CHARS_MAX: Final = 4096
# Statuses below 500 after which the same request may yet be taken: a conflict with one under way,
# a time or rate limit.
_REPEATABLE: Final = frozenset({408, 409, 425, 429})

ChargeStatus = Literal["pending", "succeeded", "failed"]


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """A charge to be made; the amount in minor units of the currency.

    `payment_method`: what is charged at once, without the customer, as the provider writes it
    (Stripe: `cus_…/pm_…`, Dodo: an on-demand subscription). None: the customer pays on a page of
    the provider, and comes back to `return_url`.
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
    """What became of a charge.

    `payment_id` is the provider's id of the payment, or of the page while nothing was paid on it;
    either finds it again. `url`: where the customer pays. `failure`: a short code that says why.
    `amount_minor`, `currency`: what was paid where the provider may take another sum than it was
    asked for, a tax on top or a discount; None: what was asked for.
    """

    status: ChargeStatus
    payment_id: str | None
    url: str | None = None
    failure: str | None = None
    amount_minor: int | None = None
    currency: Currency | None = None


class PaymentGateway(Protocol):
    """A provider's account. Every call is a network call: none belongs inside a transaction.

    Each raises `GatewayUnavailableError` when it is not known what happened, and
    `GatewayRefusedError` when the provider will not do it, now or later.
    """

    def start(self, charge: ChargeRequest, *, is_repeated: bool) -> ChargeAnswer:
        """Charge, or open a page to pay on; once, however often it is asked for by one id.

        `is_repeated`: it may have been asked for before. A decline is an answer, not an error.
        """
        ...

    def look_up(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer | None:
        """Return what became of a charge; None: the provider knows of none."""
        ...

    def cancel(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer:
        """Stop a pending charge, which is not started again; return what became of it.

        It can have succeeded before, and `pending` is the answer where it cannot be stopped.
        """
        ...


def asked_since(charge: ChargeRequest) -> datetime:
    """Return the moment before which no payment of this charge was made."""
    return made_at(charge.charge_id) - CLOCK_SKEW


def best(answers: Iterable[ChargeAnswer]) -> ChargeAnswer:
    """Return the answer that decides, of those of one charge's payments; there is at least one."""
    ranks = ("failed", "pending", "succeeded")
    return max(answers, key=lambda answer: ranks.index(answer.status))


def word(text: object) -> str | None:
    """Return a provider's code if it is one: its sentences can quote a key or a card."""
    return text if isinstance(text, str) and _WORD.fullmatch(text) else None


def error_of(
    provider: str, status: int | None, *words: object
) -> GatewayUnavailableError | GatewayRefusedError:
    """Return the error that an answer of this HTTP status means, with those words that are codes.

    Of a redirect nothing comes either: it is not followed, because it would take the key along.
    """
    codes = ", ".join(code for code in map(word, words) if code)
    reason = f"it answered {status}" + (f" ({codes})" if codes else "")
    is_final = status is not None and (
        httpx.codes.is_client_error(status) or httpx.codes.is_redirect(status)
    )
    if is_final and status not in _REPEATABLE:
        return GatewayRefusedError(provider, reason)
    return GatewayUnavailableError(provider, reason)


def too_many(provider: str) -> GatewayUnavailableError:
    """Return the error of a search that was not at its end: it cannot say that there is none."""
    return GatewayUnavailableError(provider, _TOO_MANY)


def _is_page(url: str) -> str:
    """Refuse what is no address of a page: a customer's browser is sent there."""
    if not url.startswith(("https://", "http://")) or not url.isprintable() or " " in url:
        raise ValueError("is not the URL of a page")
    return url


# The address of a page, in an answer.
PageUrl = Annotated[str, StringConstraints(max_length=_URL_CHARS_MAX), AfterValidator(_is_page)]
