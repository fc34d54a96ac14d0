"""A server that speaks Dodo's wire format over real HTTP, for the vendor's own SDK."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from metering.clock import to_wire, utc_now

Json = dict[str, Any]


def given(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value), status, content_type="application/json")


def error(status: int, code: str, message: str = "no") -> Response:
    return given({"code": code, "message": message}, status)


@dataclass
class Seen:
    """A request to the server."""

    method: str
    path: str
    headers: dict[str, str]
    query: dict[str, str]
    body: Any


@dataclass
class DodoServer:
    """Payments and pages of one account, which knows no idempotency keys.

    `status` is the result of a charge. `after` changes the next answers to a POST, and `reads` all
    answers to a GET of paths with a prefix.
    """

    http: HTTPServer
    status: str = "succeeded"
    error_code: str | None = None
    payments: list[Json] = field(default_factory=list)
    sessions: list[Json] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    after: list[Callable[[Response], Response]] = field(default_factory=list)
    reads: dict[str, Response] = field(default_factory=dict)
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

    def hang(self) -> None:
        """Carry the next POST out, and answer nothing until the test is over."""

        def answer(response: Response) -> Response:
            self._released.wait()
            return response

        self.after.append(answer)

    def answer_next(self, response: Response) -> None:
        """Carry the next POST out, and answer this."""
        self.after.append(lambda _carried_out: response)

    def release(self) -> None:
        self._released.set()

    # --- the API ----------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        body = request.get_json(silent=True)
        seen = Seen(request.method, request.path, dict(request.headers), dict(request.args), body)
        self.seen.append(seen)
        for path, response in self.reads.items():
            if seen.method == "GET" and seen.path.startswith(path):
                return response
        response = self._carry_out(seen)
        if seen.method == "POST" and self.after:
            return self.after.pop(0)(response)
        return response

    def _carry_out(self, seen: Seen) -> Response:
        match [seen.method, *seen.path.strip("/").split("/")]:
            case ["POST", "subscriptions", subscription_id, "charge"]:
                made = self.add_payment(subscription_id, metadata=seen.body["metadata"])
                return given({"payment_id": made["payment_id"]})
            case ["POST", "checkouts"]:
                return given(self._open())
            case ["GET", "payments"]:
                return self._page(seen.query)
            case ["GET", "payments", payment_id]:
                return self._one(self.payments, "payment_id", payment_id)
            case ["GET", "checkouts", session_id]:
                return self._one(self.sessions, "id", session_id)
        return error(404, "NOT_FOUND")

    def _open(self) -> Json:
        id_ = f"cks_{next(self._ids)}"
        self.sessions.append({"id": id_, "created_at": to_wire(utc_now()), "payment_id": None})
        return {"session_id": id_, "checkout_url": f"https://checkout.dodo.example/{id_}"}

    def _one(self, among: list[Json], name: str, id_: str) -> Response:
        found = [each for each in among if each[name] == id_]
        return given(found[0]) if found else error(404, "NOT_FOUND")

    def _page(self, query: dict[str, str]) -> Response:
        mine = [
            {name: value for name, value in payment.items() if name != "error_code"}
            for payment in reversed(self.payments)
            if payment["subscription_id"] == query.get("subscription_id")
            and payment["created_at"] >= query["created_at_gte"]
        ]
        start = int(query["page_number"]) * int(query["page_size"])
        return given({"items": mine[start : start + int(query["page_size"])]})

    # --- its contents -----------------------------------------------------------------------

    def add_payment(self, subscription_id: str | None, **changes: Any) -> Json:
        made: Json = {
            "payment_id": f"pay_{next(self._ids)}",
            "subscription_id": subscription_id,
            "status": self.status,
            "error_code": self.error_code,
            "created_at": to_wire(utc_now()),
            "metadata": {},
        }
        self.payments.append({**made, **changes})
        return self.payments[-1]

    def age_page(self, by: timedelta) -> None:
        self.sessions[-1]["created_at"] = to_wire(utc_now() - by)
