"""The requests of the API, each within one transaction, and the events that report the changes.

    POST payment_intents · GET payment_intents[/{id}] · POST payment_intents/{id}/cancel
    POST checkout/sessions · GET checkout/sessions[/{id}] · POST checkout/sessions/{id}/expire
    POST refunds                payment_intent, amount
    POST disputes/{id}          evidence[uncategorized_text]: with winning_evidence the shop wins
    POST disputes/{id}/close    the shop loses
    POST events/{id}/retry      send it once more
    GET  refunds, disputes, events

The payment method of a payment decides its outcome: see `OUTCOMES` and `DECLINES`.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from metering.errors import FieldProblem, InvalidInputError, NotFoundError
from worker.demo.simulator.store import Books, Json

Form: TypeAlias = Mapping[str, str]

# `pm_hang` gets no answer the first time, and `pm_500` an error. The payment succeeds all the same.
OUTCOMES: Final = {
    "pm_ok": "succeeded",
    "pm_hang": "succeeded",
    "pm_500": "succeeded",
    "pm_disputed": "succeeded",
    "pm_pending": "processing",
    "pm_action": "requires_action",
    "pm_capture": "requires_capture",
}
DECLINES: Final[Mapping[str, Json]] = {
    "pm_declined": {"code": "card_declined"},
    "pm_poor": {"code": "card_declined", "decline_code": "insufficient_funds"},
    "pm_old": {"code": "expired_card"},
    "pm_careful": {"code": "authentication_required", "decline_code": "authentication_required"},
}
_TELLS: Final = {
    "succeeded": "payment_intent.succeeded",
    "processing": "payment_intent.processing",
    "requires_action": "payment_intent.requires_action",
    "requires_capture": "payment_intent.amount_capturable_updated",
    "requires_payment_method": "payment_intent.payment_failed",
    "canceled": "payment_intent.canceled",
}
_STOPPABLE: Final = frozenset({"requires_payment_method", "requires_action", "requires_capture"})
_SESSION: Final = "checkout.session"
_KINDS: Final = {
    "payment_intents": "payment_intent",
    "checkout/sessions": _SESSION,
    "refunds": "refund",
    "disputes": "dispute",
    "events": "event",
}
_LINE: Final = "line_items[0][price_data]"
_REFUNDS_MAX: Final = 100


class Answer(NamedTuple):
    """The status and the body of an answer."""

    status: int
    body: Json


@dataclass(frozen=True, slots=True)
class Account:
    """The payments of one account, within one transaction.

    `url`: where its pages are. `pending_s`: when a payment of `pm_pending` succeeds; None: never.
    """

    books: Books
    url: str
    pending_s: float | None = None

    def read(self, path: str, form: Form) -> Json:
        """Answer a GET."""
        if path in _KINDS:
            page = self.books.page(_KINDS[path], form)
            return {**page, "data": [self._shown(each, form) for each in page["data"]]}
        name, _, id_ = path.rpartition("/")
        if name not in _KINDS:
            raise NotFoundError("path", path)
        return self._shown(self.books.get(_KINDS[name], id_), form)

    def _shown(self, thing: Json, form: Form) -> Json:
        """Return an object. Expanded, a session has its payment in the place of the id."""
        if thing["object"] != _SESSION or not thing["payment_intent"] or "expand[0]" not in form:
            return thing
        intent = self.books.find("payment_intent", thing["payment_intent"])
        return {**thing, "payment_intent": intent or thing["payment_intent"]}

    def write(self, path: str, form: Form) -> Answer:
        """Answer a POST."""
        match path.split("/"):
            case ["payment_intents"]:
                return self._charge(form)
            case ["payment_intents", id_, "cancel"]:
                body = self._cancel(id_)
            case ["checkout", "sessions"]:
                body = self._open_session(form)
            case ["checkout", "sessions", id_, "expire"]:
                body = self._expire(id_)
            case ["refunds"]:
                body = self._refund(form)
            case ["disputes", id_, *_]:
                body = self._close(id_, form)
            case ["events", id_, "retry"]:
                event = {**self.books.get("event", id_), "pending_webhooks": 1}
                body = self.books.put(event, time.time())
            case _:
                raise NotFoundError("path", path)
        return Answer(200, body)

    # --- payments ---------------------------------------------------------------------------

    def _charge(self, form: Form) -> Answer:
        method = _text(form, "payment_method")
        if method not in {**OUTCOMES, **DECLINES}:
            raise InvalidInputError(FieldProblem("payment_method", "no such payment method"))
        intent = self._intent(
            amount=_amount(form, "amount"),
            currency=_text(form, "currency"),
            description=form.get("description"),
            metadata=_metadata(form, "metadata"),
            customer=_text(form, "customer"),
            payment_method=method,
        )
        if method in DECLINES:
            error = self._decline(intent, DECLINES[method])
            return Answer(402, {"error": error})
        self._set(intent, OUTCOMES[method])
        if method == "pm_disputed":
            dispute = self._reversal("dp", "dispute", intent, intent["amount"], "needs_response")
            self.books.tell("charge.dispute.created", dispute)
        if method == "pm_500":
            return Answer(500, {"error": {"type": "api_error", "message": "pm_500"}})
        return Answer(200, intent)

    def _intent(self, **fields: object) -> Json:
        return {
            "id": self.books.new_id("pi"),
            "object": "payment_intent",
            "amount_received": 0,
            "created": int(time.time()),
            "last_payment_error": None,
            "cancellation_reason": None,
            **fields,
        }

    def _set(self, intent: Json, status: str) -> Json:
        intent["status"] = status
        due_at = None
        if status == "succeeded":
            intent["amount_received"] = intent["amount"]
        elif status == "processing" and self.pending_s is not None:
            due_at = time.time() + self.pending_s
        self.books.tell(_TELLS[status], self.books.put(intent, due_at))
        return intent

    def _decline(self, intent: Json, cause: Json) -> Json:
        """Store a declined payment; return the error."""
        error = {"type": "card_error", "message": "Your card was declined.", **cause}
        declined = self._set({**intent, "last_payment_error": error}, "requires_payment_method")
        return {**error, "payment_intent": declined}

    def _cancel(self, id_: str) -> Json:
        return self._set(_in(_STOPPABLE, self.books.get("payment_intent", id_)), "canceled")

    def succeed(self, intent_id: str) -> None:
        """Let a payment succeed that has been processed for long enough."""
        self._set(self.books.get("payment_intent", intent_id), "succeeded")

    # --- pages ------------------------------------------------------------------------------

    def _open_session(self, form: Form) -> Json:
        id_ = self.books.new_id("cs_test")
        session = {
            "id": id_,
            "object": _SESSION,
            "status": "open",
            "payment_status": "unpaid",
            "payment_intent": None,
            "amount_total": _amount(form, f"{_LINE}[unit_amount]"),
            "currency": _text(form, f"{_LINE}[currency]"),
            "success_url": _text(form, "success_url"),
            "url": f"{self.url}/pay/{id_}",
            "created": int(time.time()),
            "metadata": _metadata(form, "metadata"),
            # Stripe does not show this: it is for the payment.
            "payment_intent_data": {
                "description": _text(form, f"{_LINE}[product_data][name]"),
                "metadata": _metadata(form, "payment_intent_data[metadata]"),
            },
        }
        return self.books.put(session)

    def _expire(self, id_: str) -> Json:
        session = _in({"open"}, self.books.get(_SESSION, id_))
        return self._end(session, "expired", "checkout.session.expired")

    def pay(self, id_: str, *, is_declined: bool) -> Json:
        """Pay on a page, or try to; return the session. After a decline it is still open."""
        session = _in({"open"}, self.books.get(_SESSION, id_))
        intent = self._intent(
            amount=session["amount_total"],
            currency=session["currency"],
            customer=None,
            **session["payment_intent_data"],
        )
        if is_declined:
            self._decline(intent, DECLINES["pm_declined"])
            return session
        self._set(intent, "succeeded")
        paid = {**session, "payment_status": "paid", "payment_intent": intent["id"]}
        return self._end(paid, "complete", "checkout.session.completed")

    def _end(self, session: Json, status: str, type_: str) -> Json:
        ended = self.books.put({**session, "status": status, "url": None})
        self.books.tell(type_, ended)
        return ended

    # --- refunds and disputes ---------------------------------------------------------------

    def _refund(self, form: Form) -> Json:
        intent = self.books.get("payment_intent", _text(form, "payment_intent"))
        of_it = {"payment_intent": intent["id"], "limit": str(_REFUNDS_MAX)}
        refunded = sum(each["amount"] for each in self.books.page("refund", of_it)["data"])
        left = intent["amount_received"] - refunded
        amount = _amount(form, "amount") if "amount" in form else left
        if not 0 < amount <= left:
            raise InvalidInputError(FieldProblem("amount", f"{left} can be refunded"))
        refund = self._reversal("re", "refund", intent, amount, "succeeded")
        self.books.tell("refund.created", refund)
        return refund

    def _reversal(self, prefix: str, kind: str, intent: Json, amount: int, status: str) -> Json:
        reversal = {
            "id": self.books.new_id(prefix),
            "object": kind,
            "amount": amount,
            "currency": intent["currency"],
            "payment_intent": intent["id"],
            "status": status,
            "created": int(time.time()),
        }
        return self.books.put(reversal)

    def _close(self, id_: str, form: Form) -> Json:
        has_won = form.get("evidence[uncategorized_text]") == "winning_evidence"
        dispute = {**self.books.get("dispute", id_), "status": "won" if has_won else "lost"}
        self.books.tell("charge.dispute.closed", self.books.put(dispute))
        return dispute


def _in(statuses: Collection[str], thing: Json) -> Json:
    if thing["status"] not in statuses:
        raise InvalidInputError(FieldProblem("status", f"is {thing['status']}"))
    return thing


def _text(form: Form, name: str) -> str:
    if not form.get(name):
        raise InvalidInputError(FieldProblem(name, "is missing"))
    return form[name]


def _amount(form: Form, name: str) -> int:
    text = _text(form, name)
    if not text.isdecimal() or not int(text):
        raise InvalidInputError(FieldProblem(name, "is not an amount"))
    return int(text)


def _metadata(form: Form, name: str) -> dict[str, str]:
    opening = f"{name}["
    return {
        key.removeprefix(opening).removesuffix("]"): value
        for key, value in form.items()
        if key.startswith(opening)
    }
