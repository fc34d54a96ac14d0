"""The simulator's HTTP: Stripe's API under /v1, a page on which a customer pays, and /health."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from html import escape
from typing import Final
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from metering.errors import (
    GullakError,
    IdempotencyConflictError,
    InvalidInputError,
    NotFoundError,
    UnauthorizedError,
)
from worker.demo.simulator.account import Account, Answer
from worker.demo.simulator.store import Json, Store

_PAGE: Final = (
    "<!doctype html><title>Payment simulator</title><h1>{what}</h1><p>{amount} {currency} minor"
    ' units<form method="post" action="{url}/yes"><button>Pay</button></form>'
    '<form method="post" action="{url}/no"><button>Try a card that is declined</button></form>'
)
_REFUSALS: Final[Mapping[type[GullakError], tuple[int, str, str | None]]] = {
    NotFoundError: (404, "invalid_request_error", "resource_missing"),
    UnauthorizedError: (401, "invalid_request_error", None),
    IdempotencyConflictError: (400, "idempotency_error", None),
    InvalidInputError: (400, "invalid_request_error", "parameter_invalid"),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it arrived; `form`: its body, or its query."""

    method: str
    path: str
    headers: Mapping[str, str]
    form: dict[str, str]


@dataclass
class Simulator:
    """An account whose only API key is `api_key`, at `url`. It calls `notify` after each change."""

    store: Store
    url: str
    api_key: str
    pending_s: float | None = None
    notify: Callable[[], None] = lambda: None

    def app(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/health", lambda _request: Response()),
            Route("/pay/{id}", self._page),
            Route("/pay/{id}/{decision:str}", self._decide, methods=["POST"]),
            Route("/v1/{path:path}", self._api, methods=["GET", "POST"]),
        ]
        return Starlette(routes=routes, exception_handlers=dict.fromkeys(_REFUSALS, _refuse))

    async def _api(self, request: Request) -> Response:
        body = (await request.body()).decode() or request.url.query
        asked = Asked(request.method, request.url.path, request.headers, dict(parse_qsl(body)))
        response = await run_in_threadpool(self.respond, asked)
        self.notify()
        while response is None and (await request.receive())["type"] != "http.disconnect":
            pass
        return response or Response()

    def respond(self, asked: Asked) -> Response | None:
        """Carry out a request. Returns None if it gets no answer."""
        given = asked.headers.get("authorization", "")
        if not compare_digest(given.encode(), f"Bearer {self.api_key}".encode()):
            raise UnauthorizedError
        path = asked.path.removeprefix("/v1/")
        if asked.method == "GET":
            with self.store.open() as books:
                return JSONResponse(Account(books, self.url).read(path, asked.form))
        answer, is_new = self._write(path, asked)
        if is_new and asked.form.get("payment_method") == "pm_hang":
            return None
        return JSONResponse(answer.body, answer.status)

    def _write(self, path: str, asked: Asked) -> tuple[Answer, bool]:
        """Carry out a POST once per idempotency key; tell whether this was the first time.

        The answer is kept, an error of ours too. A request that was refused is forgotten.
        """
        key = asked.headers.get("idempotency-key")
        request = json.dumps([path, asked.form])
        with self.store.open() as books:
            kept = None if key is None else books.find("answer", key)
            if kept is not None:
                if kept["request"] != request:
                    raise IdempotencyConflictError(kept["id"])
                return Answer(kept["status"], kept["body"]), False
            answer = Account(books, self.url, self.pending_s).write(path, asked.form)
            if key is not None:
                kept = {"id": key, "object": "answer", "created": int(time.time())}
                books.put({**kept, "request": request, **answer._asdict()})
        return answer, True

    # --- the page ---------------------------------------------------------------------------

    def _page(self, request: Request) -> Response:
        with self.store.open() as books:
            session = books.get("checkout.session", request.path_params["id"])
        if session["status"] != "open":
            return HTMLResponse(f"<!doctype html><p>This payment is {session['status']}.")
        text = _PAGE.format(
            what=escape(session["payment_intent_data"]["description"]),
            amount=session["amount_total"],
            currency=escape(session["currency"].upper()),
            url=session["url"],
        )
        return HTMLResponse(text)

    def _decide(self, request: Request) -> Response:
        is_declined = request.path_params["decision"] != "yes"
        with self.store.open() as books:
            session = Account(books, self.url).pay(
                request.path_params["id"], is_declined=is_declined
            )
        self.notify()
        return RedirectResponse(session["url"] or session["success_url"], 303)


def _refuse(_request: Request, error: Exception) -> Response:
    status, type_, code = next(what for kind, what in _REFUSALS.items() if isinstance(error, kind))
    body: Json = {"type": type_, "code": code, "message": str(error)}
    if isinstance(error, InvalidInputError):
        body["param"] = error.problems[0].field
    return JSONResponse({"error": body}, status)
