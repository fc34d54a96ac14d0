"""Read a request of ordinary events straight from its bytes: the way that nearly all take.

One call of pydantic-core parses and checks the whole body, without a Python function per field.
It takes only what `check_events` would take too; whatever it does not know is looked at there,
which also has the reasons. Measured: 1,000 events with five properties each take 3.8 ms of one
core this way, and 7.9 ms the other (parsed by orjson, checked field by field).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, TypedDict

from pydantic import ValidationError
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from metering.accept.event import (
    METADATA_KEY_CHARS_MAX,
    METADATA_PAIRS_MAX,
    METADATA_TEXT_CHARS_MAX,
    NAME_CHARS_MAX,
    AcceptLimits,
)
from metering.accept.quantities import SummedProperties
from metering.buffer.chunk import BufferedEvent, Metadata
from metering.clock import to_wire
from metering.money import INT64_MAX, QUANTITY_MAX

_CEILING: Final = int(QUANTITY_MAX)
_WIRE_LENGTH: Final = 27
_DOUBLE_LIMIT: Final = float(2**63)
_PRINTABLE: Final = r"^[!-~][ -~]*$"
_NO_NUL: Final = r"^[^\x00]*$"
_RFC3339: Final = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"(Z|[+-][0-9]{2}:[0-9]{2})$"
)


class _Event(TypedDict, total=False):
    event_id: str
    customer_id: str
    event_name: str
    timestamp: str
    metadata: Metadata


def _schema() -> CoreSchema:
    s = core_schema
    name = s.str_schema(strict=True, max_length=NAME_CHARS_MAX, pattern=_PRINTABLE)
    value = s.union_schema(
        [
            s.int_schema(strict=True, ge=-INT64_MAX - 1, le=INT64_MAX),
            s.str_schema(strict=True, max_length=METADATA_TEXT_CHARS_MAX, pattern=_NO_NUL),
            s.bool_schema(strict=True),
            s.float_schema(strict=True, allow_inf_nan=False, gt=-_DOUBLE_LIMIT, lt=_DOUBLE_LIMIT),
        ],
        mode="left_to_right",
    )
    metadata = s.dict_schema(
        s.str_schema(strict=True, max_length=METADATA_KEY_CHARS_MAX, pattern=_PRINTABLE),
        value,
        max_length=METADATA_PAIRS_MAX,
    )
    event = s.typed_dict_schema(
        {
            "event_id": s.typed_dict_field(name),
            "customer_id": s.typed_dict_field(name),
            "event_name": s.typed_dict_field(name),
            "timestamp": s.typed_dict_field(
                s.str_schema(strict=True, pattern=_RFC3339), required=False
            ),
            "metadata": s.typed_dict_field(metadata, required=False),
        },
        extra_behavior="forbid",
    )
    events = s.typed_dict_field(s.list_schema(event, fail_fast=True))
    return s.typed_dict_schema({"events": events}, extra_behavior="forbid")


_BODY: Final = SchemaValidator(_schema())


def read_ordinary(
    body: bytes, limits: AcceptLimits, summed: SummedProperties, now: datetime
) -> list[BufferedEvent] | None:
    """Return the events of a body `{"events": […]}`; None: it needs a closer look."""
    try:
        events: Sequence[_Event] = _BODY.validate_json(body)["events"]
        if not 1 <= len(events) <= limits.request_events_max:
            return None
        read = [_buffered(event, now) for event in events]
    except (ValidationError, ValueError, OverflowError):
        return None
    oldest = to_wire(now - timedelta(seconds=limits.age_max_s))
    latest = to_wire(now + timedelta(seconds=limits.ahead_max_s))
    # Texts of one width: their order is that of time.
    times = [event.event_at for event in read]
    if min(times) < oldest or max(times) > latest:
        return None
    if len({event.event_id for event in read}) < len(read):
        return None
    return read if _sums_are_plain(read, summed) else None


def _buffered(event: _Event, now: datetime) -> BufferedEvent:
    said = event.get("timestamp")
    if said is None:
        event_at = to_wire(now)
    else:
        moment = datetime.fromisoformat(said)
        is_wire = len(said) == _WIRE_LENGTH and said[-1] == "Z"
        event_at = said if is_wire else to_wire(moment)
    name, metadata = event["event_name"], event.get("metadata", {})
    # Made for every event: straight from a tuple is half the price of the generated constructor.
    return tuple.__new__(
        BufferedEvent,
        (event["event_id"], event["customer_id"], name, event_at, metadata, said is not None),
    )


def _sums_are_plain(events: Sequence[BufferedEvent], summed: SummedProperties) -> bool:
    """Tell whether all that meters sum is a whole number in range; decimals are looked at."""
    for event in events:
        for key in summed.get(event.event_name, ()):
            value = event.metadata.get(key, 0)
            if type(value) is not int or not 0 <= value <= _CEILING:
                return False
    return True
