"""The demo's other way in: a producer whose events go through the HTTP edge."""

from collections.abc import Sequence
from typing import Final

import httpx

from metering.accept.client.flusher import Link
from metering.buffer.chunk import BufferedEvent
from metering.errors import (
    BufferFullError,
    BufferUnavailableError,
    FieldProblem,
    InvalidInputError,
)
from metering.ids import BusinessId

TIMEOUT_S: Final = 10.0


def edge_link(api_url: str, key: str) -> Link:
    """Return a connection that posts events to `/events/ingest`, as any client would."""
    client = httpx.Client(
        base_url=api_url, headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT_S
    )

    def append(_business_id: BusinessId, events: Sequence[BufferedEvent]) -> None:
        try:
            answer = client.post("/events/ingest", json={"events": [_body(e) for e in events]})
        except httpx.TransportError as error:
            raise BufferUnavailableError(type(error).__name__) from error
        _judge(answer)

    return Link(append, lambda _business_id: {}, client.close)


def _body(event: BufferedEvent) -> dict[str, object]:
    return {
        "event_id": event.event_id,
        "customer_id": event.customer_id,
        "event_name": event.event_name,
        "timestamp": event.event_at,
        "metadata": event.metadata,
    }


def _judge(answer: httpx.Response) -> None:
    """Raise what the buffer itself would have raised."""
    if answer.is_success:
        return
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise BufferFullError(int(answer.headers["Retry-After"]))
    if answer.is_client_error:
        raise InvalidInputError(FieldProblem("events", answer.text))
    raise BufferUnavailableError(f"HTTP {answer.status_code}")
