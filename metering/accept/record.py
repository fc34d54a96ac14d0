"""Record the events of one request: all in one append, or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

import orjson

from metering.accept.event import AcceptLimits
from metering.accept.fast_path import parse_fast
from metering.accept.summed import Quantities
from metering.accept.validate import RawEvent, check_events
from metering.buffer.chunk import BufferedEvent, EventColumns
from metering.clock import utc_now
from metering.errors import FieldProblem, InvalidInputError
from metering.ids import BusinessId
from metering.json_keys import check_keys_read

DEFAULT_LIMITS: Final = AcceptLimits()


class UsageSink(Protocol):
    """Stores accepted events: `UsageBuffer`."""

    def append(
        self, business_id: BusinessId, events: Sequence[BufferedEvent] | EventColumns
    ) -> None:
        """Store all of `events`, or raise."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The result of a request: its events are as durable as the durability mode promises."""

    ingested_count: int


def record_usage(
    buffer: UsageSink,
    business_id: BusinessId,
    events: Sequence[RawEvent],
    *,
    limits: AcceptLimits = DEFAULT_LIMITS,
    quantities: Quantities | None = None,
    now: datetime | None = None,
) -> Accepted:
    """Record all of `events` (1 to `limits.request_events_max`), or none.

    Raises:
        InvalidInputError: with the index and the field of every bad event; none is recorded.
        BufferFullError: above the high-water mark; none is recorded.
        BufferUnavailableError: Redis did not answer; try again with the same event ids.

    """
    summed = quantities.summed(business_id) if quantities else None
    checked = check_events(events, limits, summed, now)
    buffer.append(business_id, checked)
    return Accepted(len(checked))


def record_body(
    buffer: UsageSink,
    business_id: BusinessId,
    body: bytes,
    *,
    limits: AcceptLimits = DEFAULT_LIMITS,
    quantities: Quantities | None = None,
    are_times_given: bool = True,
) -> Accepted:
    """Record all events of a JSON body `{"events": […]}`, or none; raises as `record_usage`.

    are_times_given  false if a meter set the times: then they are not part of the digests
    """
    summed = quantities.summed(business_id) if quantities else {}
    columns = parse_fast(body, limits, summed, utc_now())
    columns = columns or EventColumns.of(check_events(_events(body), limits, summed))
    if not are_times_given:
        columns = columns._replace(are_given=[False] * len(columns.event_ids))
    buffer.append(business_id, columns)
    return Accepted(len(columns.event_ids))


def _events(body: bytes) -> list[dict[str, object]]:
    """Return the unchecked events of a body. Raises: InvalidInputError if it has another form."""
    try:
        parsed = orjson.loads(body)
    except ValueError:
        raise InvalidInputError(FieldProblem("body", "is not JSON")) from None
    if not isinstance(parsed, dict):
        raise InvalidInputError(FieldProblem("body", "is not an object"))
    if unknown := parsed.keys() - {"events"}:
        raise InvalidInputError(FieldProblem(min(unknown)[:60], "is not a field of this request"))
    if "events" not in parsed:
        raise InvalidInputError(FieldProblem("events", "is missing"))
    events = parsed["events"]
    if not isinstance(events, list):
        raise InvalidInputError(FieldProblem("events", "is not an array of events"))
    check_keys_read(body, parsed)
    return events
