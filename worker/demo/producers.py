"""The demo's producers: threads that send the planned traffic at its pace.

Every second lane goes straight to the buffer through a `Meter`, the others over HTTP.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from types import TracebackType
from typing import Final, Self

from metering.accept.client.flusher import Link
from metering.accept.client.meter import Meter
from metering.ids import BusinessId
from worker.context import open_buffer
from worker.demo.scene import Scene
from worker.demo.traffic import NOBODY, Planned
from worker.settings import Settings

LANES: Final = 4
FLUSH_EVENTS: Final = 500
BLOCK_TIMEOUT_S: Final = 30.0
# At the normal end nothing is pending. An interrupted demo need not send the rest.
CLOSE_TIMEOUT_S: Final = 0.5
HTTP_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.005


class Pace:
    """When each event may go: evenly over `duration_s`, and none from `limit` on.

    The limit holds the traffic until something has happened that belongs in its middle.
    """

    def __init__(self, events: int, duration_s: float) -> None:
        self.limit = events
        self._spacing_s = duration_s / max(events, 1)
        self._stopped = Event()
        self._started_at = time.monotonic()

    def stop(self) -> None:
        """Let nothing go any more."""
        self._stopped.set()

    def wait_turn(self, index: int) -> bool:
        """Wait until event `index` may go; return False if it never will."""
        due_at = self._started_at + index * self._spacing_s
        while index >= self.limit or due_at > time.monotonic():
            if self._stopped.wait(POLL_S):
                return False
        return not self._stopped.is_set()


class Producers:
    """Sends a plan.

    A customer's events go through one thread, so that an id which is used again, with other
    content, comes second. Events that no meter can sum go straight to Redis: the edge refuses them.
    """

    def __init__(
        self, config: Settings, scene: Scene, plan: Sequence[Planned], pace: Pace, api_url: str
    ) -> None:
        self._plan, self._pace, self._scene = plan, pace, scene
        self._began_at = datetime.now(UTC)
        self._lanes: list[list[Planned]] = [[] for _ in range(LANES)]
        self._futures: list[Future[None]] = []
        self._threads = ThreadPoolExecutor(LANES, "producer")
        self._direct = _meter(scene.business_id, _redis_link(config))
        self._edge = _http_meter(api_url, scene.api_key)
        self._meters = (self._direct, self._edge)

    def __enter__(self) -> Self:
        self._futures = [self._threads.submit(self._run, lane) for lane in range(LANES)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pace.stop()
        self._threads.shutdown()
        for meter in self._meters:
            meter.close()

    @property
    def sent(self) -> list[Planned]:
        """The events that were recorded, lane by lane."""
        return [event for lane in self._lanes for event in lane]

    @property
    def sent_count(self) -> int:
        """How many events were recorded until now."""
        return sum(map(len, self._lanes))

    def has_sent(self, count: int) -> bool:
        """Tell whether so many events were recorded.

        Raises:
            Exception: the error that ended a thread before its time.

        """
        for future in self._futures:
            if future.done():
                future.result()
        return self.sent_count >= count

    @property
    def pending(self) -> int:
        """Events that Redis does not hold yet, as far as is known."""
        return sum(meter.stats.pending for meter in self._meters)

    @property
    def retries(self) -> int:
        """Sends that failed and were repeated: each may have arrived twice."""
        return sum(meter.stats.retries for meter in self._meters)

    @property
    def over_http(self) -> int:
        """Events that went through the edge."""
        return self._edge.stats.sent

    def _run(self, lane: int) -> None:
        gone = self._lanes[lane]
        for index, event in enumerate(self._plan):
            if event.customer % LANES != lane:
                continue
            if not self._pace.wait_turn(index):
                return
            readable = type(event.metadata["output_tokens"]) is int
            self._record(event, self._edge if lane % 2 and readable else self._direct)
            gone.append(event)

    def _record(self, event: Planned, meter: Meter) -> None:
        nobody = event.customer == NOBODY
        meter.record(
            event.name,
            "cus_nobody" if nobody else self._scene.customers[event.customer],
            event_id=event.event_id,
            timestamp=self._began_at + timedelta(seconds=event.at_s),
            metadata=event.metadata,
        )


def _meter(business_id: BusinessId, link: Link) -> Meter:
    return Meter(
        "",
        business_id,
        flush_events=FLUSH_EVENTS,
        on_full="block",
        block_timeout_s=BLOCK_TIMEOUT_S,
        close_timeout_s=CLOSE_TIMEOUT_S,
        handle_sigterm=False,
        link=lambda: link,
    )


def _http_meter(api_url: str, api_key: str) -> Meter:
    return Meter(
        api_url=api_url,
        api_key=api_key,
        api_timeout_s=HTTP_TIMEOUT_S,
        flush_events=FLUSH_EVENTS,
        on_full="block",
        block_timeout_s=BLOCK_TIMEOUT_S,
        close_timeout_s=CLOSE_TIMEOUT_S,
        handle_sigterm=False,
    )


def _redis_link(config: Settings) -> Link:
    """Return a connection to the buffer that does not ask which properties are summed."""
    buffer = open_buffer(config)
    return Link(buffer.append, lambda _business_id: {}, buffer.redis.close)
