"""Turns every failure into an error body: code, message, request id, details. No stack trace."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from api.reasons import problems_of
from metering.db import (
    DATABASE_ERRORS,
    cause_of,
    is_data_fault,
    is_rolled_back,
    is_server_fault,
)
from metering.errors import (
    BufferUnavailableError,
    FieldProblem,
    GullakError,
    InvalidInputError,
    LedgerUnavailableError,
    TooManyRequestsError,
)
from worker.faults import Faults

STATUS: Final = {
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "INVALID_REQUEST_BODY": 422,
    "INVALID_REQUEST_PARAMETERS": 422,
    "INVALID_QUERY_PARAMS": 422,
    "UNSUPPORTED_CURRENCY": 422,
    "INSUFFICIENT_WALLET_FUNDS": 400,
    "DUPLICATE_EVENT_ID": 400,
    "IDEMPOTENCY_CONFLICT": 409,
    "PAYLOAD_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "TOO_MANY_REQUESTS": 429,
    "INTERNAL_SERVER_ERROR": 500,
    "UNAVAILABLE": 503,
}
_CODE_OF_STATUS: Final = {
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
}
# The part of the request at fault, with its reason in the message.
_FIELD_OF_STATUS: Final = {413: "body", 415: "Content-Encoding"}
_CODE_OF_PLACE: Final = {"query": "INVALID_QUERY_PARAMS", "path": "INVALID_REQUEST_PARAMETERS"}
_RETRY_LATER: Final = (BufferUnavailableError, LedgerUnavailableError, TooManyRequestsError)
RETRY_AFTER_S: Final = 1
DETAILS_MAX: Final = 101

log = structlog.get_logger("gullak.api")


class Detail(BaseModel):
    """A refused field: its dotted path, and the reason."""

    field: str
    reason: str


class ErrorBody(BaseModel):
    """The body of every error response."""

    code: str
    message: str
    request_id: str
    details: list[Detail] = []


def error_response(
    request_id: str,
    code: str,
    message: str,
    *,
    status: int | None = None,
    problems: Iterable[FieldProblem] = (),
    field: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the response to a failed request; `field`: the one that `message` is about."""
    if field:
        problems = [*problems, FieldProblem(field, message)]
    details = [Detail(field=p.field, reason=p.reason) for p in problems][:DETAILS_MAX]
    body = ErrorBody(code=code, message=message, request_id=request_id, details=details)
    return Response(
        body.model_dump_json(),
        status_code=STATUS[code] if status is None else status,
        media_type="application/json",
        headers=headers,
    )


def too_large(bytes_max: int) -> HTTPException:
    """Return the error for a body that is too large. It closes the connection."""
    text = f"at most {bytes_max} bytes are taken at once"
    return HTTPException(413, text, headers={"Connection": "close"})


def response_to(error: Exception, scope: Scope) -> Response:
    """Return the response to any failure of the request with this ASGI scope."""
    request_id, repeatable = scope["request_id"], _is_repeatable(scope)
    if isinstance(error, GullakError):
        return _of_ours(error, request_id)
    if isinstance(error, RequestValidationError | ValidationError):
        return _of_validation(error, request_id)
    if isinstance(error, HTTPException):
        return _of_http(error, request_id)
    if is_server_fault(error):
        _note(scope, error)
        return _of_database(error, request_id, repeatable=repeatable)
    log.error("request failed", exc_info=error, request_id=request_id)
    if is_data_fault(error) and scope["method"] != "GET":
        return _of_data(error, request_id)
    return error_response(
        request_id,
        "INTERNAL_SERVER_ERROR",
        "Something went wrong here; the request id finds it in our log.",
        headers=None if repeatable else {"x-should-retry": "false"},
    )


def _note(scope: Scope, error: Exception) -> None:
    """Count a fault of a server, and let the readiness of this process report it."""
    faults = scope["app"].state.context.faults
    if isinstance(faults, Faults):
        faults.note("api", error)


def _is_repeatable(scope: Scope) -> bool:
    """Tell whether the same request may safely be sent again.

    Then the client may retry when the outcome of this one is unknown.
    """
    is_marked: bool = scope.get("state", {}).get("repeatable", False)
    return is_marked or scope["method"] != "POST"


def _of_ours(error: GullakError, request_id: str) -> Response:
    headers: dict[str, str] = {}
    if isinstance(error, _RETRY_LATER):
        headers["Retry-After"] = str(error.retry_after_s)
    if error.code == "IDEMPOTENCY_CONFLICT":
        headers["x-should-retry"] = "false"
    if error.code == "UNAUTHORIZED":
        headers["WWW-Authenticate"] = "Bearer"
    problems = error.problems if isinstance(error, InvalidInputError) else ()
    return error_response(
        request_id,
        error.code,
        error.message,
        problems=problems,
        field=error.field,
        headers=headers,
    )


def _of_validation(error: RequestValidationError | ValidationError, request_id: str) -> Response:
    details, code = error.errors()[:DETAILS_MAX], "INVALID_REQUEST_BODY"
    for detail in details:
        place = str(detail["loc"][0]) if detail["loc"] else "body"
        code = _CODE_OF_PLACE.get(place, code)
    problems = problems_of(details, getattr(error, "body", None))
    message = "; ".join(f"{p.field}: {p.reason}" for p in problems[:3])
    return error_response(request_id, code, message, problems=problems)


def _of_http(error: HTTPException, request_id: str) -> Response:
    if error.status_code == 400:  # noqa: PLR2004 - FastAPI raises it for a body that it cannot parse
        text = "The body is not JSON that can be read."
        return error_response(request_id, "INVALID_REQUEST_BODY", text, field="body")
    return error_response(
        request_id,
        _CODE_OF_STATUS.get(error.status_code, "INVALID_REQUEST_PARAMETERS"),
        str(error.detail),
        status=error.status_code,
        field=_FIELD_OF_STATUS.get(error.status_code, ""),
        headers=error.headers,
    )


def _of_data(error: Exception, request_id: str) -> Response:
    """Return 422: the database rejects data that passed all our checks."""
    text = f"The database refuses what was sent: {type(cause_of(error)).__name__}."
    headers = {"x-should-retry": "false"}
    return error_response(request_id, "INVALID_REQUEST_BODY", text, field="body", headers=headers)


def _of_database(error: Exception, request_id: str, *, repeatable: bool) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    if not (is_rolled_back(error) or repeatable):
        # The write may have been committed. Without an idempotency key a retry would repeat it.
        headers["x-should-retry"] = "false"
    return error_response(
        request_id, "UNAVAILABLE", "The ledger does not answer; try again.", headers=headers
    )


def add_error_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Make `app` answer every failure in its `routes` with an error body."""

    def handle(request: Request, error: Exception) -> Response:
        response = response_to(error, request.scope)
        if "Allow" in response.headers:
            response.headers["Allow"] = ", ".join(_methods(request.scope, routes))
        return response

    for kind in (GullakError, RequestValidationError, HTTPException, *DATABASE_ERRORS):
        app.add_exception_handler(kind, handle)


def _methods(scope: Scope, routes: Sequence[BaseRoute]) -> list[str]:
    """Return all methods of the path. Starlette names those of its first route only."""
    ours = [route for route in routes if isinstance(route, APIRoute)]
    matching = [route for route in ours if route.matches(scope)[0] is not Match.NONE]
    # `/refused-events/replay` is a match before `/refused-events/{refusal_id}`.
    first = min(matching, key=lambda route: len(route.param_convertors))
    of_path = [route.methods or () for route in ours if route.path == first.path]
    return sorted({method for methods in of_path for method in methods})
