"""The producer's client without Redis: pending events, flushes and failures."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from metering.accept import Meter
from metering.accept.client.flusher import Link
from metering.accept.client.http_route import requests_of
from metering.accept.client.pending import Waiting
from metering.accept.summed import Quantities, SummedProperties
from metering.buffer.chunk import BufferedEvent
from metering.errors import (
    ApiUnavailableError,
    BufferFullError,
    BufferUnavailableError,
    ConfigurationError,
    FieldProblem,
    InvalidInputError,
)
from metering.ids import BusinessId, new_ulid

HOUR_S = 3600.0


class FakeBuffer:
    """Keeps the batches of `append`, or fails as `errors`, `down` and `culprit` say."""

    def __init__(self) -> None:
        self.batches: list[list[BufferedEvent]] = []
        self.attempts: list[list[str]] = []
        self.errors: list[Exception] = []
        self.down: Exception | None = None
        self.culprit = ""
        self.summed: SummedProperties = {}
        self.is_closed = False
        self.meanwhile: Callable[[], None] = lambda: None

    def append(self, _business: BusinessId, events: Sequence[BufferedEvent]) -> None:
        ids = [event.event_id for event in events]
        self.attempts.append(ids)
        self.meanwhile()
        if self.errors:
            raise self.errors.pop(0)
        if self.down:
            raise self.down
        if self.culprit in ids:
            raise TypeError("not JSON")
        self.batches.append(list(events))

    def link(self) -> Link:
        return Link(self.append, lambda _business: self.summed, self.close)

    def close(self) -> None:
        self.is_closed = True

    @property
    def ids(self) -> list[str]:
        return [event.event_id for batch in self.batches for event in batch]


@contextmanager
def meter_over(buffer: FakeBuffer, **options: object) -> Iterator[Meter]:
    settings: dict[str, object] = {
        "flush_interval_s": HOUR_S,
        "close_timeout_s": 0.2,
        "redis_timeout_s": 1.0,
        "handle_sigterm": False,
    }
    made = Meter("", "bus_1", link=buffer.link, **(settings | options))  # type: ignore[arg-type]
    with made as meter:
        yield meter


def eventually(holds: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.002)


def record(meter: Meter, count: int = 1, **metadata: object) -> list[str]:
    return [meter.record("call", f"cus_{n}", metadata=metadata) for n in range(count)]


@pytest.fixture
def buffer() -> FakeBuffer:
    return FakeBuffer()


def test_a_full_batch_is_sent_at_once(buffer: FakeBuffer) -> None:
    with meter_over(buffer, flush_events=3) as meter:
        ids = record(meter, 3)
        eventually(lambda: buffer.ids == ids)
        record(meter, 2)
        time.sleep(0.05)

        assert [len(batch) for batch in buffer.batches] == [3]


def test_a_single_event_is_sent_after_the_flush_interval(buffer: FakeBuffer) -> None:
    with meter_over(buffer, flush_interval_s=0.05) as meter:
        started = time.monotonic()
        ids = record(meter)
        eventually(lambda: buffer.ids == ids)

        assert time.monotonic() - started >= 0.05


def test_flush_sends_everything_in_batches_and_in_order(buffer: FakeBuffer) -> None:
    with meter_over(buffer, flush_events=4) as meter:
        ids = record(meter, 10)

        assert meter.flush()
        assert buffer.ids == ids
        assert max(len(batch) for batch in buffer.batches) <= 4
        assert (meter.stats.sent, meter.stats.pending, meter.stats.pending_bytes) == (10, 0, 0)


def test_close_sends_pending_events_and_closes_the_connection(buffer: FakeBuffer) -> None:
    with meter_over(buffer) as meter:
        ids = record(meter, 3)

    assert buffer.ids == ids
    assert buffer.is_closed
    assert meter.close()
    with pytest.raises(RuntimeError, match="closed"):
        record(meter)


def test_a_meter_without_events_never_connects(buffer: FakeBuffer) -> None:
    with meter_over(buffer):
        pass

    assert not buffer.is_closed


def test_a_retry_keeps_the_id_and_the_time(buffer: FakeBuffer) -> None:
    buffer.errors = [BufferUnavailableError("TimeoutError"), BufferUnavailableError("away")]
    with meter_over(buffer) as meter:
        ids = record(meter, 2)
        before = datetime.now(UTC)

        assert meter.flush()
        assert buffer.attempts == [ids, ids, ids]
        assert meter.stats.retries == 2
        assert meter.stats.last_error == (
            "BufferUnavailableError: the usage buffer did not answer: away"
        )
    (batch,) = buffer.batches
    assert all(datetime.fromisoformat(event.event_at) <= before for event in batch)


def test_events_of_an_outage_are_sent_in_order(buffer: FakeBuffer) -> None:
    with meter_over(buffer, flush_events=2, flush_interval_s=0.01) as meter:
        buffer.down = BufferUnavailableError("away")
        ids = record(meter, 3)
        eventually(lambda: meter.stats.retries)
        ids += record(meter, 4)
        buffer.down = None

        assert meter.flush()
        assert buffer.ids == ids


def test_a_flush_ends_the_wait_for_a_full_buffer(buffer: FakeBuffer) -> None:
    buffer.down = BufferFullError(retry_after_s=600)
    with meter_over(buffer, flush_events=1) as meter:
        ids = record(meter)
        eventually(lambda: meter.stats.retries == 1)
        buffer.down = None

        assert meter.flush()
        assert buffer.ids == ids


def test_a_flush_during_a_failing_attempt_is_not_missed(
    buffer: FakeBuffer,
) -> None:
    buffer.errors = [BufferFullError(retry_after_s=600)]
    with meter_over(buffer, flush_events=1) as meter:
        buffer.meanwhile = meter.send_now
        ids = record(meter)

        eventually(lambda: buffer.ids == ids)


def test_a_flush_without_redis_returns_false_in_time(buffer: FakeBuffer) -> None:
    buffer.down = BufferUnavailableError("away")
    with meter_over(buffer) as meter:
        record(meter)
        started = time.monotonic()

        assert not meter.flush(timeout_s=0.1)
        assert time.monotonic() - started < 1


def test_close_without_redis_ends_in_time_and_counts_dropped_events(
    buffer: FakeBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    buffer.down = BufferUnavailableError("away")
    with meter_over(buffer, flush_events=2) as meter:
        record(meter, 5)
        started = time.monotonic()

        assert not meter.close()
        assert time.monotonic() - started < 1.5
    assert (meter.stats.dropped, meter.stats.pending) == (5, 0)
    assert "5 usage events were given up" in caplog.text


def test_an_unsendable_event_does_not_block_the_others(buffer: FakeBuffer) -> None:
    with meter_over(buffer) as meter:
        ids = record(meter, 5)
        buffer.culprit = ids[2]

        assert meter.flush()
        assert buffer.ids == [ids[0], ids[1], ids[3], ids[4]]
        assert (meter.stats.sent, meter.stats.unsendable) == (4, 1)


def test_an_unexpected_error_neither_ends_the_thread_nor_loses_events(buffer: FakeBuffer) -> None:
    buffer.errors = [ZeroDivisionError("what?")]
    with meter_over(buffer) as meter:
        ids = record(meter, 2)

        assert meter.flush()
        assert buffer.ids == ids


def test_record_refuses_bad_input(buffer: FakeBuffer) -> None:
    with meter_over(buffer) as meter:
        bad: dict[str, dict[str, object]] = {
            "event_name": {"event_name": " "},
            "event_id": {"event_id": ""},
            "timestamp": {"timestamp": datetime.now(UTC) - timedelta(days=36)},
            "metadata.tokens": {"metadata": {"tokens": float("nan")}},
        }
        for name, fields in bad.items():
            call = {"event_name": "call", "customer_id": "cus_1"} | fields
            with pytest.raises(InvalidInputError) as refused:
                meter.record(**call)  # type: ignore[arg-type]

            assert [problem.field for problem in refused.value.problems] == [name]
        assert meter.stats.recorded == 0


def test_record_refuses_a_bad_quantity_after_the_first_flush(buffer: FakeBuffer) -> None:
    buffer.summed = {"call": frozenset({"tokens"})}
    with meter_over(buffer) as meter:
        record(meter)
        assert meter.flush()
        with pytest.raises(InvalidInputError, match=r"metadata.tokens: .* negative"):
            record(meter, tokens=-1)


def test_a_full_meter_drops_counts_and_warns_once(
    buffer: FakeBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    with meter_over(buffer, flush_events=3, pending_events_max=3) as meter:
        buffer.down = BufferUnavailableError("away")
        kept = record(meter, 3)
        with caplog.at_level(logging.WARNING):
            record(meter, 4)

        assert caplog.text.count("usage is dropped") == 1
        assert (meter.stats.recorded, meter.stats.dropped, meter.stats.pending) == (7, 4, 3)
        buffer.down = None
        assert meter.flush()
        assert buffer.ids == kept
        record(meter)
        assert meter.stats.pending == 1


def test_a_full_meter_can_raise(buffer: FakeBuffer) -> None:
    with meter_over(buffer, flush_events=2, pending_events_max=2, on_full="raise") as meter:
        buffer.down = BufferUnavailableError("away")
        record(meter, 2)
        with pytest.raises(BufferFullError):
            record(meter)

        assert meter.stats.recorded == 2
        buffer.down = None


def test_a_full_meter_can_wait_for_room(buffer: FakeBuffer) -> None:
    options = {"on_full": "block", "block_timeout_s": 5.0}
    with meter_over(buffer, flush_events=2, pending_events_max=2, **options) as meter:
        ids = record(meter, 50)
        meter.flush()

        assert buffer.ids == ids


def test_the_wait_for_room_is_bounded(buffer: FakeBuffer) -> None:
    options = {"on_full": "block", "block_timeout_s": 0.05}
    with meter_over(buffer, flush_events=1, pending_events_max=1, **options) as meter:
        buffer.down = BufferUnavailableError("away")
        record(meter)
        with pytest.raises(BufferFullError):
            record(meter)


def test_pending_bytes_are_bounded(buffer: FakeBuffer) -> None:
    with meter_over(buffer, pending_bytes_max=1 << 20) as meter:
        buffer.down = BufferUnavailableError("away")
        record(meter, 200, **{f"k{n}": "x" * 500 for n in range(20)})

        assert 0 < meter.stats.pending < 110
        assert meter.stats.pending_bytes <= 1 << 20
        assert meter.stats.dropped == 200 - meter.stats.pending


def test_impossible_settings_are_refused() -> None:
    for bounds in ({"pending_events_max": 10, "flush_events": 11}, {"pending_bytes_max": 1000}):
        with pytest.raises(ConfigurationError):
            Meter("redis://localhost", "bus_1", **bounds)  # type: ignore[arg-type]
    for address in ("http://localhost", "redis://localhost?nonsense=1", "sentinel://h/m"):
        with pytest.raises(ConfigurationError, match="address"):
            Meter(address, "bus_1")


def test_events_of_many_threads_are_sent_once(buffer: FakeBuffer) -> None:
    with meter_over(buffer, flush_events=100, flush_interval_s=0.001) as meter:
        threads = [threading.Thread(target=record, args=(meter, 500)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert meter.flush()

        assert len(buffer.ids) == len(set(buffer.ids)) == meter.stats.sent == 4000


def test_ids_sort_by_time_and_never_repeat() -> None:
    ids = [new_ulid() for _ in range(10_000)]

    assert len(set(ids)) == len(ids)
    assert [one[:10] for one in ids] == sorted(one[:10] for one in ids)


class FakeRedis:
    """Answers `hget` from a script: text, nothing, or an error."""

    def __init__(self, *answers: bytes | Exception | None) -> None:
        self.answers = list(answers)

    def hget(self, _key: str, _field: str) -> bytes | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_summed_properties_are_read_once_per_period() -> None:
    known = Quantities(FakeRedis(b'{"call":["tokens"]}'), ttl_s=HOUR_S)  # type: ignore[arg-type]

    for _ in range(3):
        assert known.summed(BusinessId("bus_1")) == {"call": frozenset({"tokens"})}


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"call":5}'])
def test_without_an_answer_the_last_properties_are_used(bad: bytes) -> None:
    redis = FakeRedis(RedisTimeoutError(), b'{"call":["tokens"]}', RedisTimeoutError(), bad, None)
    known = Quantities(redis, ttl_s=0)  # type: ignore[arg-type]
    answers = [known.summed(BusinessId("bus_1")) for _ in range(5)]

    tokens = {"call": frozenset({"tokens"})}
    assert answers == [{}, tokens, tokens, tokens, {}]


# --- over HTTP ------------------------------------------------------------------------------------


def test_events_that_an_error_names_are_unsendable_and_the_others_are_sent(
    buffer: FakeBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = [FieldProblem(f"events[{at}].timestamp", "is too old") for at in (1, 1, 4, 99)]
    buffer.errors = [InvalidInputError(*refusal)]
    with meter_over(buffer) as meter:
        ids = record(meter, 6)

        assert meter.flush()
        assert buffer.ids == [ids[0], ids[2], ids[3], ids[5]]
        assert (meter.stats.sent, meter.stats.unsendable, meter.stats.retries) == (4, 2, 0)
    assert f"event {ids[4]!r} cannot be sent: events[4].timestamp: is too old" in caplog.text


def test_the_rest_of_a_batch_that_was_cut_is_dropped_with_it(buffer: FakeBuffer) -> None:
    """Closing waits for one request, not for each part of a batch."""
    buffer.errors = [InvalidInputError(FieldProblem("body", "is too large"))]
    with meter_over(buffer, close_timeout_s=0.0) as meter:
        record(meter, 8)
        buffer.meanwhile = lambda: setattr(buffer, "down", BufferUnavailableError("away"))

        assert not meter.close()
        assert (len(buffer.attempts), meter.stats.dropped, meter.stats.pending) == (2, 8, 0)


def test_an_api_that_says_when_is_not_asked_before(buffer: FakeBuffer) -> None:
    buffer.errors = [ApiUnavailableError("it answered 429", retry_after_s=0.4)]
    with meter_over(buffer, flush_events=1) as meter:
        started = time.monotonic()
        record(meter)
        eventually(lambda: buffer.ids)

        assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"redis_url": "redis://localhost"},
        {"business_id": "bus_1"},
        {"api_url": "https://localhost"},
        {"api_key": "key"},
        {"redis_url": "redis://localhost", "business_id": "bus_1", "api_key": "key"},
        {"api_url": "https://localhost", "api_key": "key", "business_id": "bus_1"},
    ],
)
def test_a_meter_has_one_way_to_send(given: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="give redis_url and business_id, or api_url"):
        Meter(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8080",
        "redis://localhost",
        "https://",
        "https://key@localhost",
        "https://localhost?key=1",
        "https://localhost:port",
        "https://[::1",
        f"https://{'a' * 70}.example.com",
    ],
)
def test_an_address_that_is_none_of_an_api_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="address of the API"):
        Meter(api_url=url, api_key="key")


@pytest.mark.parametrize("key", [" ", "a\nb", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Meter(api_url="https://localhost", api_key=key)

    assert key == " " or key not in str(refused.value)


def waiting(event_id: str, size_bytes: int = 100, *, time_given: bool = False) -> Waiting:
    at = "2026-01-31T09:30:00.000000Z"
    return Waiting(BufferedEvent(event_id, "cus_1", "call", at, {}, time_given), size_bytes, 0.0)


def cut(*batch: Waiting) -> list[list[str]]:
    return [[one.event.event_id for one in request] for request in requests_of([*batch])]


def test_a_batch_is_one_request() -> None:
    assert cut(*(waiting(f"{n}") for n in range(3))) == [["0", "1", "2"]]


def test_a_request_holds_an_id_once() -> None:
    """The API refuses a request that repeats an id; apart, the second counts as a duplicate."""
    assert cut(waiting("a"), waiting("b"), waiting("a"), waiting("c")) == [["a", "b"], ["a", "c"]]


def test_times_of_the_program_and_of_the_meter_are_sent_apart() -> None:
    batch = [waiting(f"{n}", time_given=bool(n % 2)) for n in range(5)]

    assert cut(*batch) == [["1", "3"], ["0", "2", "4"]]


def test_requests_are_bounded() -> None:
    many = requests_of([waiting(f"{n}") for n in range(2500)])
    large = requests_of([waiting(f"{n}", 300_000) for n in range(7)])

    assert [len(request) for request in many] == [1000, 1000, 500]
    assert [len(request) for request in large] == [3, 3, 1]
    assert [len(request) for request in requests_of([waiting("huge", 2_000_000)])] == [1]
