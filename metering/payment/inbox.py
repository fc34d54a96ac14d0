"""The inbox: webhooks of providers, stored as they arrive and processed one by one afterwards.

A provider does not send again after our 200, so an event must not be lost once it is stored. It
ends as one of these, each with a reason that a person can read: applied; ignored; failed; or
parked, while its payment is unknown, was paid twice, too little or in another currency, while a
person has to enter an amount, or because only an earlier version knew its provider. Every event can
be replayed, and nothing is counted twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Final, Literal, NamedTuple

import structlog
from sqlalchemy import Connection

from metering.db import Transactions, cause_of, database_now, is_server_fault, rows
from metering.errors import GullakError, NotFoundError, UnreadableEventError
from metering.ids import AccountId, BusinessId, ProviderEventNumber
from metering.payment import statements
from metering.payment.apply import apply_payments
from metering.payment.facts import (
    PaidFor,
    PaymentFact,
    apply_parked,
    note_payment,
    note_reversal,
    parked_reason,
)
from metering.payment.provider_account import WebhookSource
from metering.payment.top_ups.result import RETRY_S
from metering.payment.vendors.dodo import webhook as dodo
from metering.payment.vendors.parsing import Fact, ParsedEvent
from metering.payment.vendors.stripe import webhook as stripe
from metering.purchase.payments import PaymentKey
from metering.purchase.reversal_target import Provider

log = structlog.get_logger("gullak.provider")

# An event fails after this many runs that end in an error of ours or in refused data. A fault of
# the server does not count.
ATTEMPTS_MAX: Final = 5
# Events that one call replays: their rows stay locked until the commit.
REPLAY_MAX: Final = 10_000

EventStatus = Literal["received", "applied", "parked", "ignored", "failed"]


class _Vendor(NamedTuple):
    verify: Callable[[bytes, Mapping[str, str], str], str]
    parse: Callable[[bytes], ParsedEvent]


_VENDORS: Final[Mapping[Provider, _Vendor]] = {
    "dodo": _Vendor(dodo.verify, dodo.parse),
    "stripe": _Vendor(stripe.verify, stripe.parse),
}


@dataclass(frozen=True, slots=True)
class Verified:
    """A webhook with a good signature; only `verified` makes one."""

    source: WebhookSource
    provider_event_id: str
    # It holds customers' names and addresses.
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderEvent:
    """An event as listed, without its body; `reason`: why it was not applied."""

    event_number: ProviderEventNumber
    account_id: AccountId
    provider: Provider
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
    """Which events to list."""

    status: EventStatus | None = None
    payment_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Which events to process again: one, those of a payment, or all parked and failed ones.

    `before`: of these only events that were processed before that moment.
    """

    event_number: ProviderEventNumber | None = None
    payment_id: str | None = None
    before: datetime | None = None


class _Event(NamedTuple):
    business_id: BusinessId
    provider: Provider
    body: bytes
    attempts: int


class _Outcome(NamedTuple):
    status: EventStatus
    type: str | None = None
    payment_id: str | None = None
    reason: str | None = None


# --- receive --------------------------------------------------------------------------------------


def verified(source: WebhookSource, body: bytes, headers: Mapping[str, str]) -> Verified:
    """Return the webhook if its source has just signed it. Uses no database.

    Raises: BadSignatureError if the signature is missing, wrong, too old or from the future.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    event_id = _VENDORS[source.provider].verify(body, lower, source.secret)
    return Verified(source, event_id, body)


def receive(conn: Connection, webhook: Verified) -> ProviderEventNumber | None:
    """Store a webhook and return its number. Returns None if it was stored before."""
    values = {
        "business_id": webhook.source.business_id,
        "account_id": webhook.source.account_id,
        "provider": webhook.source.provider,
        "provider_event_id": webhook.provider_event_id,
        "body": webhook.body,
    }
    number: ProviderEventNumber | None = conn.execute(
        statements.RECEIVE, values
    ).scalar_one_or_none()
    return number


# --- process --------------------------------------------------------------------------------------


def waiting(conn: Connection, page: int) -> list[ProviderEventNumber]:
    """Return up to `page` events that are not processed yet, the oldest first."""
    return list(conn.execute(statements.WAITING, {"page": page}).scalars())


def process(
    conn: Connection, event_number: ProviderEventNumber, decline_retry_s: int = RETRY_S
) -> EventStatus | None:
    """Apply an event. Returns None if that is done, or another process is doing it.

    Its facts are stored and applied together: if that fails, nothing of it stays, and the event is
    processed again, at most `ATTEMPTS_MAX` times. Events that were parked because their payment was
    unknown are applied with it.

    Raises: DBAPIError for a fault of the server (`db.is_server_fault`); nothing was written.
    """
    row = conn.execute(statements.TAKE, {"event_number": event_number}).one_or_none()
    if row is None:
        return None
    outcome = _outcome(conn, event_number, _Event(*row), decline_retry_s)
    conn.execute(statements.PROCESSED, {"event_number": event_number, **outcome._asdict()})
    return outcome.status


def _outcome(
    conn: Connection, event_number: ProviderEventNumber, event: _Event, decline_retry_s: int
) -> _Outcome:
    try:
        with conn.begin_nested():
            return _apply(conn, event, decline_retry_s)
    except UnreadableEventError as error:
        return _Outcome("failed", type=error.event_type, reason=error.message)
    except Exception as error:
        if is_server_fault(error):
            raise
        log.warning("event not applied", event_number=event_number, exc_info=error)
        is_last = event.attempts + 1 >= ATTEMPTS_MAX
        return _Outcome("failed" if is_last else "received", reason=_reason(error))


def _apply(conn: Connection, event: _Event, decline_retry_s: int) -> _Outcome:
    vendor = _VENDORS.get(event.provider)
    if vendor is None:  # an earlier version has stored it
        return _Outcome("parked", reason="unknown_provider")
    parsed = vendor.parse(event.body)
    if not parsed.facts:
        status: EventStatus = "ignored" if parsed.parked is None else "parked"
        return _Outcome(status, type=parsed.type, reason=parsed.parked or parsed.ignored)
    for fact in parsed.facts:
        _check_currency(conn, event.business_id, fact, parsed.type)
    paid_for = [_note(conn, event.business_id, fact) for fact in parsed.facts][-1]
    payment_id = parsed.facts[-1].payment_id
    payment = PaymentKey(event.business_id, event.provider, payment_id)
    reason: str | None
    if paid_for.is_known:
        apply_payments(conn, paid_for, decline_retry_s)
        reason = parked_reason(conn, payment) or _unclear(conn, event.business_id, parsed)
    else:
        reason = parsed.parked or _unknown(conn, payment)
    if reason is not None:
        return _Outcome("parked", parsed.type, payment_id, reason)
    apply_parked(conn, payment)
    return _Outcome("applied", parsed.type, payment_id)


def _note(conn: Connection, business_id: BusinessId, fact: Fact) -> PaidFor:
    if isinstance(fact, PaymentFact):
        return note_payment(conn, business_id, fact)
    return note_reversal(conn, business_id, fact)


def _unknown(conn: Connection, payment: PaymentKey) -> str:
    """Return which is unknown: the payment itself, or the purchase that it pays for."""
    is_seen = _payment_currency(conn, payment) is not None
    return "unknown_purchase" if is_seen else "unknown_payment"


def _unclear(conn: Connection, business_id: BusinessId, parsed: ParsedEvent) -> str | None:
    """Return what a person has to enter for a dispute. Returns None once it has ended."""
    fact = parsed.facts[-1]
    if parsed.parked is None or isinstance(fact, PaymentFact):
        return None
    values = {
        "business_id": business_id,
        "provider": fact.provider,
        "kind": "dispute",
        "reversal_id": fact.reversal_id,
    }
    dispute = conn.execute(statements.REVERSAL, values).one_or_none()
    return parsed.parked if dispute is not None and dispute.status == "open" else None


def _check_currency(conn: Connection, business_id: BusinessId, fact: Fact, type_: str) -> None:
    """Refuse a reversal in another currency than its payment: its share of it is unknown.

    While a dispute is open, and after it is won, the amount does not matter.

    Raises: UnreadableEventError if the currencies differ.
    """
    if isinstance(fact, PaymentFact) or fact.status not in {"succeeded", "lost"}:
        return
    payment = PaymentKey(business_id, fact.provider, fact.payment_id)
    currency = _payment_currency(conn, payment)
    if None not in {fact.currency, currency} and fact.currency != currency:
        reason = f"currency: is {fact.currency}, but {currency} was paid; enter it by hand"
        raise UnreadableEventError(reason, type_)


def _payment_currency(conn: Connection, payment: PaymentKey) -> str | None:
    """Return the currency of a payment. Returns None if no fact of it is stored."""
    row = conn.execute(statements.PAYMENT, payment._asdict()).one_or_none()
    return None if row is None else row.currency


def _reason(error: Exception) -> str:
    """Return a text for people: of a foreign error only its name, as its text may hold anything."""
    return error.message if isinstance(error, GullakError) else type(cause_of(error)).__name__


# --- list and replay ------------------------------------------------------------------------------


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
    values = {"business_id": business_id, "page": page, "offset": offset, "after": after}
    return rows(ProviderEvent, conn.execute(statements.EVENT_PAGE, {**values, **asdict(wanted)}))


def replay(conn: Connection, business_id: BusinessId, wanted: Replay) -> int:
    """Let the next sweep process events again; return how many, at most `REPLAY_MAX`.

    An event that is named is processed whatever its status, unless it is waiting already.

    Raises: NotFoundError if the business has no such event.
    """
    values = {"business_id": business_id, "replay_max": REPLAY_MAX, **asdict(wanted)}
    if wanted.event_number is None:
        return conn.execute(statements.REPLAY_OPEN, values).rowcount
    if not conn.execute(statements.HAS_EVENT, values).scalar_one():
        raise NotFoundError("provider event", str(wanted.event_number))
    return conn.execute(statements.REPLAY_ONE, values).rowcount


def replay_all(
    transaction: Transactions,
    business_id: BusinessId,
    event_number: ProviderEventNumber | None,
    payment_id: str | None,
) -> int:
    """Replay all such events that are there now, page by page; return how many."""
    with transaction() as conn:
        before = database_now(conn)
    wanted = Replay(event_number=event_number, payment_id=payment_id, before=before)
    total, count = 0, REPLAY_MAX
    while count >= REPLAY_MAX:
        with transaction() as conn:
            count = replay(conn, business_id, wanted)
        total += count
    return total
