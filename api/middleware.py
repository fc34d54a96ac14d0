"""Around every request: its id, its caller before its body, its metrics, and no stack trace."""

import re
import time
from typing import Final, get_args

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import key_of
from api.body import coding_of, unpack
from api.context import ApiScope
from api.errors import answer_to, too_large
from api.routes import ingest, pages
from api.routes.providers import PROVIDER_BODY_BYTES_MAX
from metering.access.keys import Principal
from metering.errors import FieldProblem, InvalidInputError, NotFoundError
from metering.ids import new_ulid
from metering.payment.provider_account import AccountProvider
from worker.metrics import HTTP_REQUESTS, HTTP_SECONDS

# What anybody may ask, without a key; a webhook of a provider is let in by its signature.
PUBLIC: Final = frozenset(
    {
        *("/livez", "/readyz", "/metrics", "/openapi.json"),
        *pages.PATHS,
        *(f"/providers/{provider}/webhooks" for provider in get_args(AccountProvider)),
    }
)
_EVENT: Final = "/events/"
_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")

log = structlog.get_logger("gullak.api")


class Edge:
    """An ASGI middleware; `scope["request_id"]` and `scope["principal"]` are its gifts."""

    def __init__(self, app: ASGIApp, *, body_bytes_max: int) -> None:
        self._app = app
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{new_ulid()}"
        scope["request_id"] = request_id
        answer = _Answer(send, request_id)
        started_at = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            # What asks for the head alone, a balancer's probe mostly, is answered as to GET: the
            # server leaves out the body.
            asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await self._serve(asked, headers, receive, answer)
        route = getattr(asked.get("route"), "path", "none")
        HTTP_REQUESTS.labels(scope["method"], route, answer.status).inc()
        HTTP_SECONDS.labels(route).observe(time.perf_counter() - started_at)

    async def _serve(
        self, scope: Scope, headers: Headers, receive: Receive, answer: "_Answer"
    ) -> None:
        try:
            _check_target(scope)
            scope["path"] = _plain(scope["method"], scope["path"])
            is_public = scope["path"] in PUBLIC
            bytes_max = self._body_bytes_max
            if is_public:
                bytes_max = min(bytes_max, PROVIDER_BODY_BYTES_MAX)
            if not is_public:
                # As the server says: behind a proxy that it trusts, the client's.
                address = (scope.get("client") or ("",))[0]
                scope["principal"] = await _caller(scope["app"].state.scope, headers, address)
            _check_length(headers, bytes_max)
            if coding := coding_of(headers.get("content-encoding", "")):
                receive = await unpack(scope, receive, coding, bytes_max)
            if ingest.is_meant(scope):
                await ingest.serve(scope, receive, answer)
                return
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            log.info("the client hung up before its request was whole")
        except Exception as error:
            if answer.status:
                raise  # too late for another answer: the connection is cut
            await answer_to(error, scope)(scope, receive, answer)


class _Answer:
    """Sends on, with the request's id, and remembers the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        await self._send(message)


def _check_target(scope: Scope) -> None:
    """Refuse NUL, which no id, name or text of ours holds and Postgres cannot even be asked for.

    Raises:
        NotFoundError: in the path.
        InvalidInputError: in the query.

    """
    if "\0" in scope["path"]:
        raise NotFoundError("path", scope["path"].replace("\0", "%00"))
    if b"%00" in scope["query_string"]:
        raise InvalidInputError(FieldProblem("query", "holds a NUL character"))


def _plain(method: str, path: str) -> str:
    """Return the path without a slash at its end, which changes nothing.

    It is served and not redirected: behind a proxy we know neither the scheme nor the host that
    the client uses. The id of an event is the producer's, so it may end in a slash.
    """
    if len(path) == 1 or not path.endswith("/"):
        return path
    names_event = method != "POST" and path.startswith(_EVENT) and path != _EVENT
    return path if names_event else path[:-1]


async def _caller(scope: ApiScope, headers: Headers, address: str) -> Principal:
    key = key_of(headers.get("authorization", ""))
    # A key that is known needs no thread, and nearly every key is.
    principal = scope.keys.fresh(key)
    if principal is None:
        principal = await scope.keys.find(key, address)
    if not scope.rate.passes(principal.key_id):
        await run_in_threadpool(scope.rate.take, principal.key_id)
    return principal


def _check_length(headers: Headers, bytes_max: int) -> None:
    """Refuse a body that says of itself that it is too large, before it is read.

    Raises:
        HTTPException: it does.

    """
    text = headers.get("content-length", "")
    length = int(text) if text.isdigit() and len(text) <= 18 else 0  # noqa: PLR2004 - int64
    if length > bytes_max:
        raise too_large(bytes_max)
