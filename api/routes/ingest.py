"""Ingestion, past the framework's layers: the call that nearly every request makes.

The edge asks here before the router. Measured, CPU of a request through all layers and past them:
2.0 and 1.1 ms with one event, 11.3 and 9.7 with a thousand, on a busy machine.
"""

from typing import Final

from anyio import to_thread
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api.auth import check_scope
from api.body import read_body
from api.context import ApiScope
from metering.accept import record_body
from metering.ids import BusinessId
from worker.metrics import ACCEPTED_EVENTS


class Ingested(BaseModel):
    """How many events are held now, as the durability mode promises."""

    ingested_count: int


async def ingest(request: Request) -> Response:
    """Take the events of a request whose caller the edge has found.

    Raises:
        ForbiddenError: the key may not ingest.
        HTTPException: the body is too large.
        InvalidInputError, BufferFullError, BufferUnavailableError: see `record_body`.

    """
    request.state.repeatable = True
    caller = check_scope(request.scope, "ingest")
    scope: ApiScope = request.app.state.scope
    body = await read_body(request, scope.settings.api_body_bytes_max)
    # In threads of their own, so that a wait for Postgres delays no other request.
    answer = await to_thread.run_sync(
        _record, scope, caller.business_id, body, limiter=scope.ingesting
    )
    return Response(answer.model_dump_json(), media_type="application/json")


_ROUTE: Final = Route("/events/ingest", ingest, methods=["POST"])


def is_meant(scope: Scope) -> bool:
    """Tell whether a request is one to ingest."""
    return bool(scope["path"] == _ROUTE.path and scope["method"] == "POST")


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer such a request, or raise as `ingest`."""
    scope["route"] = _ROUTE
    response = await ingest(Request(scope, receive))
    await response(scope, receive, send)


def _record(scope: ApiScope, business_id: BusinessId, body: bytes) -> Ingested:
    accepted = record_body(
        scope.buffer, business_id, body, limits=scope.limits, quantities=scope.quantities
    )
    ACCEPTED_EVENTS.inc(accepted.ingested_count)
    return Ingested(ingested_count=accepted.ingested_count)
