"""What an event of a provider says, and the parts that the vendors' forms of it have in common.

The forms are read strictly where money depends on it, and whatever else a vendor adds is passed
over: an amount that is a float or a text, where an integer is due, is not guessed at.
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from metering.errors import UnreadableEventError
from metering.fields import Filled255
from metering.ids import ChargeId, PurchaseId
from metering.payment.facts import PaymentFact, ReversalFact
from metering.payment.vendors.amount import minor_of
from metering.purchase.reversal_target import Provider, ReversalStatus

# How old a webhook may be, and how far its clock ahead: what the vendors' SDKs take.
TOLERANCE_S: Final = 300
# Where a payment carries what it is for.
PURCHASE_KEY: Final = "gullak_purchase_id"
CHARGE_KEY: Final = "gullak_charge_id"

_FAILURE_CHARS_MAX: Final = 500
_PROBLEMS_MAX: Final = 3
_REFERENCE_CHARS_MAX: Final = 64
_CURRENCY: Final = re.compile(r"[A-Za-z]{3}", re.ASCII)
_EVENT_ID: Final = re.compile(r"[!-~]{1,255}", re.ASCII)

Metadata: TypeAlias = Mapping[str, object]

Fact: TypeAlias = PaymentFact | ReversalFact
M = TypeVar("M", bound=BaseModel)


class Form(BaseModel):
    """A part of a vendor's event: what is named is checked, everything else passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class Head(Form):
    """What every event begins with."""

    type: Filled255


# Why nothing follows from an event.
NOT_A_PAYMENT: Final = "not_about_a_payment"
# The payment that it is about has events of its own, which are followed.
TOLD_BY_THE_PAYMENT: Final = "told_by_the_payment"
NOTHING_PAID: Final = "nothing_paid"
NOTHING_CAPTURED: Final = "nothing_captured"
# Why a person has to look at an event.
UNKNOWN_TYPE: Final = "unknown_type"
UNCLEAR_AMOUNT: Final = "unclear_amount"


class Word(NamedTuple):
    """The type of an event, and the facts about one payment that it holds.

    `ignored`: why it holds none. `parked`: why a person has to look at it all the same.
    """

    type: str
    facts: tuple[Fact, ...] = ()
    ignored: str | None = None
    parked: str | None = None


class Disputed(NamedTuple):
    """A dispute as its provider tells it; amount and currency as they came."""

    provider: Provider
    dispute_id: str
    payment_id: str
    status: ReversalStatus
    occurred_at: datetime
    amount: object
    currency: object


def word_of_dispute(type_: str, said: Disputed) -> Word:
    """Return the fact of a dispute.

    While it is open all is frozen, and once it is won all is freed, whatever the amount. One that
    is lost for a sum that nobody can read stays open, and a person says the sum.
    """
    amount_minor, currency = minor_of(said.amount), currency_of(said.currency)
    is_unclear = amount_minor is None or (said.currency is not None and currency is None)
    is_unclear = is_unclear and said.status == "lost"
    fact = ReversalFact(
        provider=said.provider,
        kind="dispute",
        reversal_id=said.dispute_id,
        payment_id=said.payment_id,
        status="open" if is_unclear else said.status,
        occurred_at=said.occurred_at,
        amount_minor=amount_minor,
        currency=currency,
    )
    return Word(type_, (fact,), parked=UNCLEAR_AMOUNT if is_unclear else None)


def currency_of(text: object) -> str | None:
    """Return the code of a currency, None if it is none."""
    return text.upper() if isinstance(text, str) and _CURRENCY.fullmatch(text) else None


class References(NamedTuple):
    """What a payment says that it is for."""

    purchase_id: PurchaseId | None
    charge_id: ChargeId | None


def read(form: type[M], body: bytes, event_type: str | None = None) -> M:
    """Return the body of an event in its form.

    Raises:
        UnreadableEventError: it has another one; the reason names fields, never their values.

    """
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)[:_PROBLEMS_MAX]
        ]
        raise UnreadableEventError("; ".join(problems), event_type) from None


def references(metadata: Metadata | None) -> References:
    """Return our references in the metadata of a payment; what cannot be one of ours is none."""
    held = metadata or {}
    purchase_id, charge_id = _reference(held, PURCHASE_KEY), _reference(held, CHARGE_KEY)
    return References(
        None if purchase_id is None else PurchaseId(purchase_id),
        None if charge_id is None else ChargeId(charge_id),
    )


def _reference(metadata: Metadata, key: str) -> str | None:
    value = metadata.get(key)
    if not isinstance(value, str) or not _EVENT_ID.fullmatch(value):
        return None
    return value if len(value) <= _REFERENCE_CHARS_MAX else None


def failure_text(*candidates: str | None) -> str | None:
    """Return the first text there is, as it may be stored: Postgres keeps no NUL in one."""
    for text in candidates:
        if text and (kept := text.replace("\0", "")[:_FAILURE_CHARS_MAX].strip()):
            return kept
    return None


def event_id_of(given: object, body: bytes) -> str:
    """Return the provider's own id of an event; the body's digest if it has none that can be kept.

    What was signed is kept, whatever it holds: a person looks at what cannot be read.
    """
    if isinstance(given, str) and _EVENT_ID.fullmatch(given):
        return given
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
