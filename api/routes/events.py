"""Usage events: taken whole or not at all, with one round trip to Redis."""

from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from api.auth import Ingester
from api.scope import Scoped
from metering.accept import UsageEvent, record_usage
from metering.errors import FieldProblem, InvalidInputError
from worker.metrics import ACCEPTED_EVENTS

router: Final = APIRouter(prefix="/events", tags=["events"])


class Ingest(BaseModel):
    """Usage events of one request."""

    events: list[UsageEvent]


class Ingested(BaseModel):
    """How many events are held now, as the durability mode promises."""

    ingested_count: int


async def _raw(request: Request) -> bytes:
    return await request.body()


_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Ingest"}}},
    }
}


@router.post("/ingest", openapi_extra=_BODY)
def ingest_events(
    caller: Ingester, scope: Scoped, request: Request, raw: Annotated[bytes, Depends(_raw)]
) -> Ingested:
    """Take 1 to 1,000 events. The same `event_id` again is charged once, however often it comes."""
    request.state.repeatable = True
    accepted = record_usage(
        scope.buffer,
        caller.business_id,
        _events(raw),
        limits=scope.limits,
        quantities=scope.quantities,
    )
    ACCEPTED_EVENTS.inc(accepted.ingested_count)
    return Ingested(ingested_count=accepted.ingested_count)


def _events(raw: bytes) -> list[dict[str, object]]:
    """Return the events of a body, still unchecked.

    Raises:
        InvalidInputError: the body is something else.

    """
    try:
        body = orjson.loads(raw)
    except ValueError:
        raise InvalidInputError(FieldProblem("body", "is not JSON")) from None
    if not isinstance(body, dict):
        raise InvalidInputError(FieldProblem("body", "is not an object"))
    if unknown := body.keys() - {"events"}:
        raise InvalidInputError(FieldProblem(min(unknown)[:60], "is not a field of this request"))
    events = body.get("events")
    if not isinstance(events, list):
        raise InvalidInputError(FieldProblem("events", "is not an array of events"))
    return events
