"""The facts in an event of a provider, and the parts of the vendors' formats that are alike.

The fields that decide about money are read strictly: an amount that is a float, or a text where an
integer is due, is an error. All other fields are passed over.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from metering.errors import UnreadableEventError
from metering.fields import Filled255
from metering.ids import ChargeId, PurchaseId
from metering.money import INT64_MAX
from metering.payment.facts import (
    CHARGE_KEY,
    PURCHASE_KEY,
    UNCLEAR_AMOUNT,
    PaymentFact,
    ReversalFact,
)
from metering.purchase.reversal_target import PaymentStatus, Provider

# How old a webhook may be, and how far its clock may be ahead: the same as in the vendors' SDKs.
TOLERANCE_S: Final = 300

_FAILURE_CHARS_MAX: Final = 500
_PROBLEMS_MAX: Final = 3
_REFERENCE_CHARS_MAX: Final = 64
_CURRENCY: Final = re.compile(r"[A-Za-z]{3}", re.ASCII)
_DIGITS: Final = re.compile(r"[0-9]{1,40}", re.ASCII)
_EVENT_ID: Final = re.compile(r"[!-~]{1,255}", re.ASCII)

Metadata: TypeAlias = Mapping[str, object]

Fact: TypeAlias = PaymentFact | ReversalFact
M = TypeVar("M", bound=BaseModel)


class Form(BaseModel):
    """A part of a vendor's event: the fields named here are checked, all others passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class Head(Form):
    """The part that every event has."""

    type: Filled255


# Why an event is ignored.
NOT_A_PAYMENT: Final = "not_about_a_payment"
# The payment has events of its own, which are followed.
TOLD_BY_THE_PAYMENT: Final = "told_by_the_payment"
NOTHING_PAID: Final = "nothing_paid"
NOTHING_CAPTURED: Final = "nothing_captured"
# Why an event is parked; see also `UNCLEAR_AMOUNT`.
UNKNOWN_TYPE: Final = "unknown_type"


class ParsedEvent(NamedTuple):
    """The type of an event, and its facts, all about one payment.

    `ignored`: why it has no facts. `parked`: why a person has to look at it.
    """

    type: str
    facts: tuple[Fact, ...] = ()
    ignored: str | None = None
    parked: str | None = None


def read(form: type[M], body: bytes, event_type: str | None = None) -> M:
    """Return the body of an event in its form.

    Raises: UnreadableEventError if it has another form. The reason names fields, never their
    values.
    """
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)[:_PROBLEMS_MAX]
        ]
        raise UnreadableEventError("; ".join(problems), event_type) from None


def payment_fact(
    *,
    provider: Provider,
    payment_id: str,
    status: PaymentStatus,
    amount_minor: int,
    currency: str,
    occurred_at: datetime,
    metadata: Metadata | None,
    failure: str | None,
) -> PaymentFact:
    """Return the fact of a payment. `failure` is used only if the payment has failed."""
    purchase_id, charge_id = references(metadata)
    return PaymentFact(
        provider=provider,
        payment_id=payment_id,
        status=status,
        amount_minor=amount_minor,
        currency=currency.upper(),
        occurred_at=occurred_at,
        purchase_id=purchase_id,
        charge_id=charge_id,
        failure=failure if status == "failed" else None,
    )


def dispute_event(
    type_: str, dispute: ReversalFact, amount: object, currency: object
) -> ParsedEvent:
    """Return the event of a dispute whose amount and currency are still as the vendor wrote them.

    An open dispute freezes all of the credit and a won one frees all of it, whatever the amount. A
    lost one whose amount cannot be read stays open until a person enters the amount.
    """
    amount_minor, code = minor_of(amount), currency_of(currency)
    is_unclear = amount_minor is None or (currency is not None and code is None)
    is_unclear = is_unclear and dispute.status == "lost"
    status = "open" if is_unclear else dispute.status
    fact = replace(dispute, status=status, amount_minor=amount_minor, currency=code)
    return ParsedEvent(type_, (fact,), parked=UNCLEAR_AMOUNT if is_unclear else None)


def minor_of(amount: object) -> int | None:
    """Return an amount in minor units. Returns None if it is not above zero or its unit is unclear.

    A whole number, or the text of one, counts minor units. A number with a point could be in either
    unit. An amount beyond 64 bits becomes the largest that they hold.
    """
    if isinstance(amount, str) and _DIGITS.fullmatch(amount):
        amount = int(amount)
    if not isinstance(amount, int) or isinstance(amount, bool) or amount <= 0:
        return None
    return min(amount, INT64_MAX)


def currency_of(text: object) -> str | None:
    """Return a currency in upper case. Returns None if the text is not a currency code."""
    return text.upper() if isinstance(text, str) and _CURRENCY.fullmatch(text) else None


def references(metadata: Metadata | None) -> tuple[PurchaseId | None, ChargeId | None]:
    """Return the purchase and the charge that the metadata of a payment name."""
    purchase_id = _reference(metadata or {}, PURCHASE_KEY)
    charge_id = _reference(metadata or {}, CHARGE_KEY)
    return (
        None if purchase_id is None else PurchaseId(purchase_id),
        None if charge_id is None else ChargeId(charge_id),
    )


def _reference(metadata: Metadata, key: str) -> str | None:
    """Return an id of ours. Returns None if the value cannot be one."""
    value = metadata.get(key)
    if not isinstance(value, str) or not _EVENT_ID.fullmatch(value):
        return None
    return value if len(value) <= _REFERENCE_CHARS_MAX else None


def failure_text(*candidates: str | None) -> str | None:
    """Return the first text that is not blank, cut to fit and without NUL."""
    for text in candidates:
        if text and (kept := text.replace("\0", "")[:_FAILURE_CHARS_MAX].strip()):
            return kept
    return None


def event_id_of(given: object, body: bytes) -> str:
    """Return the provider's id of an event, or a digest of the body if the id cannot be stored.

    A signed event is always kept: a person looks at it if it cannot be read.
    """
    if isinstance(given, str) and _EVENT_ID.fullmatch(given):
        return given
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
