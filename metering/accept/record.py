"""Take one request's events: check all, then hold all in one append, or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from metering.accept.check import RawEvent, check_events
from metering.accept.event import AcceptLimits
from metering.accept.quantities import Quantities
from metering.buffer.chunk import BufferedEvent
from metering.ids import BusinessId

DEFAULT_LIMITS: Final = AcceptLimits()


class UsageSink(Protocol):
    """What holds accepted events: `UsageBuffer`."""

    def append(self, business_id: BusinessId, events: Sequence[BufferedEvent]) -> None:
        """Hold all of `events`, or raise."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What was taken: held as the durability mode promises."""

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
    """Take `events` (1 to `limits.request_events_max`) whole, or not at all.

    Raises:
        InvalidInputError: with every bad event's index and field; nothing was taken.
        BufferFullError: above the high-water mark; nothing was taken.
        BufferUnavailableError: Redis is away; try again with the same event ids.

    """
    summed = quantities.summed(business_id) if quantities else None
    checked = check_events(events, limits, summed, now)
    buffer.append(business_id, checked)
    return Accepted(len(checked))
