"""The demo's producers: threads that send the planned traffic at its pace.

Every second lane goes straight to the buffer through a `Meter`, the others over HTTP.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from threading import Event
from types import TracebackType
from typing import Final, Self

from metering.accept.client.flusher import Link
from metering.accept.client.meter import Meter
from metering.ids import BusinessId
from worker.context import open_buffer
from worker.demo.edge import edge_link
from worker.demo.scene import Scene
from worker.demo.traffic import NOBODY, UNMETERED, Planned
from worker.settings import Settings

LANES: Final = 4
FLUSH_EVENTS: Final = 500
CLOSE_TIMEOUT_S: Final = 30.0
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

    def start(self) -> None:
        """Begin now."""
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
    """Sends a plan; `sent` is what has gone, in the order of each customer.

    A customer's events go through one thread, so that an id which is used again, with other
    content, comes second. What no meter could sum goes through a producer of its own, one that
    does not know the meters: the usual one refuses such an event at once.
    """

    def __init__(
        self, config: Settings, scene: Scene, plan: list[Planned], pace: Pace, api_url: str
    ) -> None:
        self._plan, self._pace, self._scene = plan, pace, scene
        self._started_at = datetime.now(UTC)
        self._cleanup = ExitStack()
        self._lanes: list[list[Planned]] = [[] for _ in range(LANES)]
        self._futures: list[Future[None]] = []
        self._meter = self._cleanup.enter_context(_meter(config, scene.business_id, None))
        self._edge = self._cleanup.enter_context(
            _meter(config, scene.business_id, edge_link(api_url, scene.api_key))
        )
        self._careless = self._cleanup.enter_context(
            _meter(config, scene.business_id, _careless_link(config))
        )
        self._threads = ThreadPoolExecutor(LANES, "producer")

    def __enter__(self) -> Self:
        self._pace.start()
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
        self._cleanup.close()

    @property
    def sent_count(self) -> int:
        """Events recorded until now."""
        return sum(map(len, self._lanes))

    @property
    def sent(self) -> list[Planned]:
        """The events that were recorded, lane by lane."""
        return [event for lane in self._lanes for event in lane]

    @property
    def is_done(self) -> bool:
        """Whether all has gone and Redis holds it.

        Raises:
            Exception: what ended a thread before its time.

        """
        for future in self._futures:
            if future.done():
                future.result()
        return all(future.done() for future in self._futures) and not self.pending

    @property
    def pending(self) -> int:
        """Events recorded that Redis does not hold yet, as far as is known."""
        return sum(producer.stats.pending for producer in self._producers)

    @property
    def retries(self) -> int:
        """Sends that failed and were repeated: each may have arrived twice."""
        return sum(producer.stats.retries for producer in self._producers)

    @property
    def dropped(self) -> int:
        """Events that never reached Redis: none, or the account cannot be right."""
        stats = [producer.stats for producer in self._producers]
        return sum(each.dropped + each.unsendable for each in stats)

    @property
    def over_http(self) -> int:
        """Events that went through the edge."""
        return self._edge.stats.sent

    @property
    def _producers(self) -> tuple[Meter, ...]:
        return self._meter, self._edge, self._careless

    def _run(self, lane: int) -> None:
        gone = self._lanes[lane]
        for index, event in enumerate(self._plan):
            if event.customer % LANES != lane:
                continue
            if not self._pace.wait_turn(index):
                return
            self._record(event, self._edge if lane % 2 else self._meter)
            gone.append(event)

    def _record(self, event: Planned, producer: Meter) -> None:
        readable = type(event.metadata["output_tokens"]) is int or event.name == UNMETERED
        meter = producer if readable else self._careless
        nobody = event.customer == NOBODY
        meter.record(
            event.name,
            "cus_nobody" if nobody else self._scene.customers[event.customer],
            event_id=event.event_id,
            timestamp=self._started_at + timedelta(seconds=event.at_s),
            metadata=event.metadata,
        )


def _meter(config: Settings, business_id: BusinessId, link: Link | None) -> Meter:
    return Meter(
        config.redis_url.get_secret_value(),
        business_id,
        shards=config.shards,
        durability=config.durability,
        high_water_events=config.high_water_events,
        high_water_bytes=config.high_water_bytes,
        flush_events=FLUSH_EVENTS,
        on_full="block",
        block_timeout_s=CLOSE_TIMEOUT_S,
        close_timeout_s=CLOSE_TIMEOUT_S,
        handle_sigterm=False,
        link=None if link is None else lambda: link,
    )


def _careless_link(config: Settings) -> Link:
    """Return a connection of a producer that does not ask what is summed."""
    buffer = open_buffer(config)
    return Link(buffer.append, lambda _business_id: {}, buffer.redis.close)
