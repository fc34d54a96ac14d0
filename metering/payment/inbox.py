"""The inbox: webhooks of providers kept as they came, and processed one by one afterwards.

What was received is answered for by then: a provider that gets its 200 does not come again. So an
event stays until it is applied, or a person can see why not: parked, while nobody knows what its
payment is for, while money lies aside that was paid twice, too little or in another currency, or
while a person has to say a sum; failed, with the reason; ignored, with the reason too. All can be
replayed, and nothing is counted twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final, Literal, NamedTuple, TypeAlias

import structlog
from sqlalchemy import Connection

from metering.db import cause_of, is_server_fault
from metering.errors import GullakError, NotFoundError, UnreadableEventError
from metering.ids import AccountId, BusinessId, ProviderEventNumber
from metering.payment import statements
from metering.payment.facts import PaidFor, PaymentFact, note_payment, note_reversal
from metering.payment.provider_account import AccountProvider, Sender
from metering.payment.vendors.dodo import webhook as dodo
from metering.payment.vendors.parsing import UNCLEAR_AMOUNT, Fact, Word
from metering.payment.vendors.stripe import webhook as stripe
from metering.purchase.reversal_target import Provider

log = structlog.get_logger("gullak.provider")

# Runs of an event that end in an error of ours, or because its data are refused; after the last it
# has failed. A fault of the server is none of them.
ATTEMPTS_MAX: Final = 5
# Of one call: its rows stay locked until the commit.
REPLAY_MAX: Final = 10_000

# received: nobody has processed it yet. ignored: nothing follows from it, for its reason.
EventStatus = Literal["received", "applied", "parked", "ignored", "failed"]
# Lets the ledger follow what is known of a purchase or checkout, in the transaction given.
Settle: TypeAlias = Callable[[Connection, PaidFor], None]


class _Vendor(NamedTuple):
    """How a vendor signs, and how it says things."""

    verify: Callable[[bytes, Mapping[str, str], str], str]
    facts_of: Callable[[bytes], Word]


_VENDORS: Final[Mapping[AccountProvider, _Vendor]] = {
    "dodo": _Vendor(dodo.verify, dodo.facts_of),
    "stripe": _Vendor(stripe.verify, stripe.facts_of),
    "local": _Vendor(dodo.verify, partial(dodo.facts_of, provider="local")),
}


@dataclass(frozen=True, slots=True)
class Verified:
    """A webhook whose signature is good; made by `verified` only."""

    sender: Sender
    provider_event_id: str
    # Customers' names and addresses are in it.
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderEvent:
    """An event as listed, without its body; `reason`: why it was not applied."""

    event_number: ProviderEventNumber
    account_id: AccountId
    provider: AccountProvider
    provider_event_id: str
    type: str | None
    status: EventStatus
    reason: str | None
    payment_id: str | None
    attempts: int
    received_at: datetime
    processed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events are listed: both filters are optional."""

    status: EventStatus | None = None
    payment_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Which events are processed anew: one, those of a payment, or all that are parked or failed.

    `before`: of these only what was processed before that moment.
    """

    event_number: ProviderEventNumber | None = None
    payment_id: str | None = None
    before: datetime | None = None


class _Taken(NamedTuple):
    business_id: BusinessId
    provider: AccountProvider
    body: bytes
    attempts: int


class _Payment(NamedTuple):
    business_id: BusinessId
    provider: Provider
    payment_id: str


class _Outcome(NamedTuple):
    status: EventStatus
    type: str | None = None
    payment_id: str | None = None
    reason: str | None = None


# --- in -------------------------------------------------------------------------------------------


def verified(sender: Sender, body: bytes, headers: Mapping[str, str]) -> Verified:
    """Return the webhook if its sender has signed it, just now; touches no database.

    Raises:
        BadSignatureError: the signature is missing, wrong, stale or from the future.

    """
    given = {name.lower(): value for name, value in headers.items()}
    event_id = _VENDORS[sender.provider].verify(body, given, sender.secret)
    return Verified(sender, event_id, body)


def receive(conn: Connection, webhook: Verified) -> ProviderEventNumber | None:
    """Keep a webhook as it came; return its number, None if it was kept before."""
    values = {
        "business_id": webhook.sender.business_id,
        "account_id": webhook.sender.account_id,
        "provider": webhook.sender.provider,
        "provider_event_id": webhook.provider_event_id,
        "body": webhook.body,
    }
    number: ProviderEventNumber | None = conn.execute(
        statements.RECEIVE, values
    ).scalar_one_or_none()
    return number


def waiting(conn: Connection, page: int) -> list[ProviderEventNumber]:
    """Return up to `page` events that nobody has processed yet, the oldest first."""
    return list(conn.execute(statements.WAITING, {"page": page}).scalars())


# --- through --------------------------------------------------------------------------------------


def process(
    conn: Connection, event_number: ProviderEventNumber, settle: Settle
) -> EventStatus | None:
    """Let the ledger follow an event; None if that is done, or another is at it.

    What is known of the payment is noted, and what it is for is settled, in one go: if that fails,
    nothing of it stays, and the event is processed again, `ATTEMPTS_MAX` times at most. With the
    event go those that were parked because its payment was not known.

    Raises:
        DBAPIError: a fault of the server (`db.is_server_fault`); nothing was written.

    """
    row = conn.execute(statements.TAKE, {"event_number": event_number}).one_or_none()
    if row is None:
        return None
    outcome = _outcome(conn, event_number, _Taken(*row), settle)
    values = {"event_number": event_number, **outcome._asdict()}
    conn.execute(statements.PROCESSED, values)
    return outcome.status


def _outcome(
    conn: Connection, event_number: ProviderEventNumber, event: _Taken, settle: Settle
) -> _Outcome:
    try:
        with conn.begin_nested():
            return _follow(conn, event, settle)
    except UnreadableEventError as error:
        return _Outcome("failed", type=error.event_type, reason=error.message)
    except Exception as error:
        if is_server_fault(error):
            raise
        log.warning("event not applied", event_number=event_number, exc_info=error)
        is_last = event.attempts + 1 >= ATTEMPTS_MAX
        return _Outcome("failed" if is_last else "received", reason=_reason(error))


def _follow(conn: Connection, event: _Taken, settle: Settle) -> _Outcome:
    word = _VENDORS[event.provider].facts_of(event.body)
    if not word.facts:
        status: EventStatus = "ignored" if word.parked is None else "parked"
        return _Outcome(status, type=word.type, reason=word.parked or word.ignored)
    for fact in word.facts:
        _check_currency(conn, event.business_id, fact, word.type)
    paid_for = [_note(conn, event.business_id, fact) for fact in word.facts][-1]
    payment = _Payment(event.business_id, event.provider, word.facts[-1].payment_id)
    if not paid_for.is_known:
        is_seen = conn.execute(statements.HAS_PAYMENT, payment._asdict()).scalar_one()
        unknown = "unknown_purchase" if is_seen else "unknown_payment"
        return _Outcome("parked", word.type, payment.payment_id, word.parked or unknown)
    settle(conn, paid_for)
    parked = _put_aside(conn, payment) or _unclear(conn, event.business_id, word)
    if parked is not None:
        return _Outcome("parked", word.type, payment.payment_id, parked)
    apply_parked(conn, *payment)
    return _Outcome("applied", word.type, payment.payment_id)


def _put_aside(conn: Connection, payment: _Payment) -> str | None:
    """Return why somebody has to look at money that was paid, None if nobody has to."""
    found: str | None = conn.execute(statements.PUT_ASIDE, payment._asdict()).scalar_one_or_none()
    return found


def _unclear(conn: Connection, business_id: BusinessId, word: Word) -> str | None:
    """Return what a person has to say of the dispute of an event, None once that was said."""
    fact = word.facts[-1]
    if word.parked is None or isinstance(fact, PaymentFact):
        return None
    values = {
        "business_id": business_id,
        "provider": fact.provider,
        "dispute_id": fact.reversal_id,
    }
    return word.parked if conn.execute(statements.IS_OPEN, values).scalar_one() else None


def apply_parked(
    conn: Connection, business_id: BusinessId, provider: Provider, payment_id: str
) -> int:
    """Mark the events that waited for a payment as applied, once it is settled; return how many.

    What they said is among the facts since they came, so settling has followed it. Of money that
    lies aside they stay parked until it is called back.
    """
    payment = _Payment(business_id, provider, payment_id)
    if _put_aside(conn, payment) is not None:
        return 0
    values = {**payment._asdict(), "unclear": UNCLEAR_AMOUNT}
    return conn.execute(statements.APPLY_PARKED, values).rowcount


def _check_currency(conn: Connection, business_id: BusinessId, fact: Fact, type_: str) -> None:
    """Refuse to call back a sum of which nobody can tell what share of the payment it is.

    Of an open dispute all is frozen, and of a won one all is freed, whatever the sum.

    Raises:
        UnreadableEventError: it is in another currency than its payment.

    """
    if isinstance(fact, PaymentFact) or fact.status not in {"succeeded", "lost"}:
        return
    payment = _Payment(business_id, fact.provider, fact.payment_id)
    currency = conn.execute(statements.CURRENCY, payment._asdict()).scalar_one_or_none()
    if None not in {fact.currency, currency} and fact.currency != currency:
        reason = f"currency: is {fact.currency}, not the {currency} that were paid; say it by hand"
        raise UnreadableEventError(reason, type_)


def _note(conn: Connection, business_id: BusinessId, fact: Fact) -> PaidFor:
    if isinstance(fact, PaymentFact):
        return note_payment(conn, business_id, fact)
    return note_reversal(conn, business_id, fact)


def _reason(error: Exception) -> str:
    """Return what a person may read: not the text of another's error, which may hold anything."""
    return error.message if isinstance(error, GullakError) else type(cause_of(error)).__name__


# --- seen and sent again --------------------------------------------------------------------------


def page_of_events(
    conn: Connection,
    business_id: BusinessId,
    wanted: EventFilter,
    *,
    page: int,
    offset: int = 0,
    after: ProviderEventNumber | None = None,
) -> list[ProviderEvent]:
    """Return up to `page` events of a business, newest first, older than `after`."""
    values = {
        "business_id": business_id,
        "status": wanted.status,
        "payment_id": wanted.payment_id,
        "page": page,
        "offset": offset,
        "after": after,
    }
    rows = conn.execute(statements.EVENT_PAGE, values)
    return [ProviderEvent(**row._mapping) for row in rows]  # noqa: SLF001


def replay(conn: Connection, business_id: BusinessId, wanted: Replay) -> int:
    """Have events processed anew by the next sweep; return how many, `REPLAY_MAX` at most.

    One that is named is processed whatever became of it, unless it waits for that already.

    Raises:
        NotFoundError: the business has no such event.

    """
    if wanted.event_number is not None:
        return _replay_one(conn, business_id, wanted.event_number)
    values = {
        "business_id": business_id,
        "payment_id": wanted.payment_id,
        "before": wanted.before,
        "replay_max": REPLAY_MAX,
    }
    return conn.execute(statements.REPLAY_OPEN, values).rowcount


def _replay_one(conn: Connection, business_id: BusinessId, number: ProviderEventNumber) -> int:
    values = {"business_id": business_id, "event_number": number}
    if not conn.execute(statements.HAS_EVENT, values).scalar_one():
        raise NotFoundError("provider event", str(number))
    return conn.execute(statements.REPLAY_ONE, values).rowcount
