"""ASGI middleware: request id, authentication before the body is read, metrics, error responses."""

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
from api.context import ApiContext
from api.errors import response_to, too_large
from api.routes import pages
from api.routes.providers import PROVIDER_BODY_BYTES_MAX
from metering.access.keys import Principal
from metering.errors import FieldProblem, InvalidQueryError, NotFoundError
from metering.ids import new_ulid
from metering.payment.provider_account import AccountProvider
from worker.metrics import HTTP_REQUESTS, HTTP_SECONDS

# Paths that need no key; a provider's webhook has a signature instead.
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


class RequestMiddleware:
    """Sets `scope["request_id"]` and `scope["principal"]`."""

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
        responder = _Responder(send, request_id)
        started_at = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            # HEAD, which is mostly a balancer's probe, is served as GET: the server leaves out the
            # body.
            served = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await self._serve(served, headers, receive, responder)
        route = getattr(served.get("route"), "path", "none")
        HTTP_REQUESTS.labels(scope["method"], route, responder.status).inc()
        HTTP_SECONDS.labels(route).observe(time.perf_counter() - started_at)

    async def _serve(
        self, scope: Scope, headers: Headers, receive: Receive, responder: "_Responder"
    ) -> None:
        try:
            _check_target(scope)
            scope["path"] = _plain(scope["method"], scope["path"])
            bytes_max = self._body_bytes_max
            if scope["path"] in PUBLIC:
                bytes_max = min(bytes_max, PROVIDER_BODY_BYTES_MAX)
            else:
                # Behind a proxy that the server trusts, this is the client's address.
                address = (scope.get("client") or ("",))[0]
                scope["principal"] = await _caller(scope["app"].state.context, headers, address)
            _check_length(headers, bytes_max)
            if coding := coding_of(headers.get("content-encoding", "")):
                receive = await unpack(scope, receive, coding, bytes_max)
            await self._app(scope, receive, responder)
        except ClientDisconnect:
            log.info("the client hung up before its request was whole")
        except Exception as error:
            if responder.status:
                raise  # too late for another response: the connection is cut
            await response_to(error, scope)(scope, receive, responder)


class _Responder:
    """An ASGI `send` that adds the request's id and remembers the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send(message)


def _check_target(scope: Scope) -> None:
    """Reject a URL with NUL, which Postgres takes in no text.

    Raises: NotFoundError if it is in the path; InvalidQueryError if it is in the query.
    """
    if "\0" in scope["path"]:
        raise NotFoundError("path", scope["path"].replace("\0", "%00"))
    if b"%00" in scope["query_string"]:
        raise InvalidQueryError(FieldProblem("query", "holds a NUL character"))


def _plain(method: str, path: str) -> str:
    """Return the path without a slash at its end.

    There is no redirect: behind a proxy we know neither the scheme nor the host that the client
    uses. The id of an event is the producer's, so it may end in a slash.
    """
    if len(path) == 1 or not path.endswith("/"):
        return path
    names_event = method != "POST" and path.startswith(_EVENT) and path != _EVENT
    return path if names_event else path[:-1]


async def _caller(context: ApiContext, headers: Headers, address: str) -> Principal:
    key = key_of(headers.get("authorization", ""))
    # A cached key needs no thread, and nearly every key is cached.
    principal = context.keys.fresh(key)
    if principal is None:
        principal = await context.keys.find(key, address)
    if not context.rate.passes(principal.key_id):
        await run_in_threadpool(context.rate.take, principal.key_id)
    return principal


def _check_length(headers: Headers, bytes_max: int) -> None:
    """Reject a request whose Content-Length exceeds the limit, before its body is read."""
    text = headers.get("content-length", "")
    length = int(text) if text.isdigit() and len(text) <= 18 else 0  # noqa: PLR2004 - int64
    if length > bytes_max:
        raise too_large(bytes_max)
