"""A server that speaks Stripe's wire format over real HTTP, for the vendor's own SDK."""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import parse_qsl

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

Json = dict[str, Any]
Answering = Callable[[Response], Response]

# What the saved payment methods do.
OUTCOMES = {
    "pm_ok": "succeeded",
    "pm_slow": "processing",
    "pm_action": "requires_action",
    "pm_capture": "requires_capture",
}
DECLINES = {
    "pm_poor": {"code": "card_declined", "decline_code": "insufficient_funds"},
    "pm_old": {"code": "expired_card"},
    "pm_careful": {"code": "authentication_required", "decline_code": "authentication_required"},
}


def error(status: int, **fields: Any) -> Response:
    return Response(json.dumps({"error": fields}), status, content_type="application/json")


def given(value: object) -> Response:
    return Response(json.dumps(value), content_type="application/json")


@dataclass
class Seen:
    """A request as it arrived; `form` is its body, or its query."""

    method: str
    path: str
    headers: dict[str, str]
    form: dict[str, str]


@dataclass
class StripeServer:
    """Payments and pages of one account; `after` changes the next answers to a POST."""

    http: HTTPServer
    intents: list[Json] = field(default_factory=list)
    sessions: list[Json] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    after: list[Answering] = field(default_factory=list)
    # What every list answers, if not what there is.
    lists: Response | None = None
    _kept: dict[str, Response] = field(default_factory=dict)
    _released: threading.Event = field(default_factory=threading.Event)
    _ids: Any = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.http.expect_request(re.compile(".*")).respond_with_handler(self._answer)

    @property
    def url(self) -> str:
        return self.http.url_for("").rstrip("/")

    @property
    def posts(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "POST"]

    # --- what goes wrong --------------------------------------------------------------------

    def hang(self) -> None:
        """Carry the next POST out, and answer nothing until the test is over."""

        def answer(response: Response) -> Response:
            self._released.wait()
            return response

        self.after.append(answer)

    def answer_next(self, response: Response) -> None:
        """Carry the next POST out, and answer this; it is kept under the key, as Stripe does."""
        self.after.append(lambda _carried_out: response)

    def release(self) -> None:
        self._released.set()

    # --- the API ----------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        body = request.get_data(as_text=True) or request.query_string.decode()
        form = dict(parse_qsl(body))
        seen = Seen(request.method, request.path, dict(request.headers), form)
        self.seen.append(seen)
        if seen.method == "GET":
            return self._read(seen)
        key = seen.headers["Idempotency-Key"]
        if key not in self._kept:
            response = self._write(seen)
            self._kept[key] = response
            if self.after:
                self._kept[key] = self.after.pop(0)(response)
        return self._kept[key]

    def _write(self, seen: Seen) -> Response:
        match seen.path.removeprefix("/v1/").split("/"):
            case ["payment_intents"]:
                return self._charge(seen.form)
            case ["payment_intents", payment_id, "cancel"]:
                return self._cancel(payment_id)
            case ["checkout", "sessions"]:
                return self._open(seen.form)
            case ["checkout", "sessions", session_id, "expire"]:
                return self._expire(session_id)
        return error(404, type="invalid_request_error")

    def _read(self, seen: Seen) -> Response:
        match seen.path.removeprefix("/v1/").split("/"):
            case ["payment_intents"]:
                mine = [i for i in self.intents if i["customer"] == seen.form["customer"]]
                return self._page(mine, seen.form)
            case ["payment_intents", payment_id]:
                return self._one(self.intents, payment_id)
            case ["checkout", "sessions"]:
                return self._page(self.sessions, seen.form)
            case ["checkout", "sessions", session_id]:
                return self._one(self.sessions, session_id)
        return error(404, type="invalid_request_error")

    def _charge(self, form: dict[str, str]) -> Response:
        method = form["payment_method"]
        intent = self.add_intent(form["customer"], OUTCOMES.get(method, "requires_payment_method"))
        intent["amount"] = int(form["amount"])
        intent["metadata"] = _metadata(form, "metadata")
        if method in DECLINES:
            intent["last_payment_error"] = DECLINES[method]
            fields = {"type": "card_error", "message": "no", "payment_intent": intent}
            return error(402, **fields, **DECLINES[method])
        return given(intent)

    def _open(self, form: dict[str, str]) -> Response:
        session = self.add_session(_metadata(form, "metadata"))
        return given(session)

    def _cancel(self, payment_id: str) -> Response:
        intent = self.intent(payment_id)
        if intent["status"] in {"succeeded", "processing", "canceled"}:
            return error(400, type="invalid_request_error", code="payment_intent_unexpected_state")
        intent["status"] = "canceled"
        return given(intent)

    def _expire(self, session_id: str) -> Response:
        session = self.session(session_id)
        if session["status"] != "open":
            return error(400, type="invalid_request_error")
        session["status"] = "expired"
        return given(session)

    def _one(self, among: list[Json], id_: str) -> Response:
        found = [each for each in among if each["id"] == id_]
        if not found:
            return error(404, type="invalid_request_error", code="resource_missing", param="id")
        return given(found[0])

    def _page(self, among: list[Json], form: dict[str, str]) -> Response:
        if self.lists is not None:
            return self.lists
        newest = [each for each in reversed(among) if each["created"] >= int(form["created[gte]"])]
        ids = [each["id"] for each in newest]
        start = ids.index(form["starting_after"]) + 1 if "starting_after" in form else 0
        end = start + int(form["limit"])
        return given(
            {"object": "list", "data": newest[start:end], "has_more": end < len(newest), "url": "/"}
        )

    # --- its contents -----------------------------------------------------------------------

    def add_intent(self, customer: str, status: str = "succeeded", **changes: Any) -> Json:
        made = {
            "id": f"pi_{next(self._ids)}",
            "object": "payment_intent",
            "customer": customer,
            "status": status,
            "created": int(time.time()),
            "metadata": {},
            "last_payment_error": None,
        }
        self.intents.append({**made, **changes})
        return self.intents[-1]

    def add_session(self, metadata: dict[str, str], **changes: Any) -> Json:
        id_ = f"cs_test_{next(self._ids)}"
        made = {
            "id": id_,
            "object": "checkout.session",
            "status": "open",
            "payment_status": "unpaid",
            "payment_intent": None,
            "url": f"https://checkout.stripe.com/c/pay/{id_}#fid",
            "created": int(time.time()),
            "metadata": metadata,
        }
        self.sessions.append({**made, **changes})
        return self.sessions[-1]

    def intent(self, payment_id: str) -> Json:
        return next(each for each in self.intents if each["id"] == payment_id)

    def session(self, session_id: str) -> Json:
        return next(each for each in self.sessions if each["id"] == session_id)


def _metadata(form: dict[str, str], prefix: str) -> dict[str, str]:
    opening = f"{prefix}["
    return {
        name.removeprefix(opening).removesuffix("]"): value
        for name, value in form.items()
        if name.startswith(opening)
    }
