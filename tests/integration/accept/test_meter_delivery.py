"""The producer's client with a real Redis: outages, process exits, forks, threads."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from redis import Redis

from metering.accept import Meter, publish_quantities
from metering.buffer.keys import QUANTITIES
from metering.errors import InvalidInputError
from metering.ids import BusinessId
from support.buffer_probe import decode_chunk
from support.own_redis import OwnRedis, running_redis

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60


@pytest.fixture
def own_redis(data_dir: Path) -> Iterator[OwnRedis]:
    with running_redis(data_dir, "always") as server:
        yield server


def eventually(holds: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.01)


def held_by_customer(url: str) -> dict[str, list[str]]:
    """Return the event ids in Redis, per customer in the order of its stream."""
    held: dict[str, list[str]] = {}
    with Redis.from_url(url) as client:
        for key in client.scan_iter("gullak:usage:{??}"):
            for _, fields in client.xrange(key):
                for event in decode_chunk(fields[b"e"]):
                    held.setdefault(event.customer_id, []).append(event.event_id)
    return held


def ids_held(url: str) -> Counter[str]:
    return Counter(one for ids in held_by_customer(url).values() for one in ids)


def record(meter: Meter, count: int) -> list[str]:
    return [meter.record("call", f"cus_{n % 7}", metadata={"tokens": n}) for n in range(count)]


def test_recorded_events_reach_redis(redis_url: str) -> None:
    with Meter(redis_url, "bus_1", flush_interval_s=0.05) as meter:
        ids = record(meter, 1234)
        eventually(lambda: meter.stats.sent == 1234)

        assert ids_held(redis_url) == Counter(ids)
        assert (meter.stats.retries, meter.stats.dropped) == (0, 0)


def test_outages_of_redis_lose_and_reorder_nothing(own_redis: OwnRedis) -> None:
    """A retry may repeat events that arrived, under the same ids."""
    options = {"flush_events": 50, "flush_interval_s": 0.02, "redis_timeout_s": 0.5}
    with Meter(own_redis.url, "bus_1", **options) as meter:  # type: ignore[arg-type]
        ids: list[str] = []
        for outage in range(3):
            ids += record(meter, 300)
            own_redis.kill()
            ids += record(meter, 300)
            eventually(lambda wanted=outage + 1: meter.stats.retries >= wanted)  # type: ignore[misc]
            own_redis.start()
        ids += record(meter, 300)

        assert meter.flush(20)
        assert (meter.stats.sent, meter.stats.dropped) == (len(ids), 0)
    held = held_by_customer(own_redis.url)
    assert set(ids_held(own_redis.url)) == set(ids)
    order = {one: place for place, one in enumerate(ids)}
    for mine in held.values():
        firsts = list(dict.fromkeys(mine))
        assert firsts == sorted(firsts, key=order.__getitem__)


def test_a_batch_without_an_answer_is_sent_again_with_the_same_ids(own_redis: OwnRedis) -> None:
    with Meter(own_redis.url, "bus_1", flush_events=5, redis_timeout_s=0.3) as meter:
        first = record(meter, 5)
        assert meter.flush()
        own_redis.send(signal.SIGSTOP)
        second = record(meter, 5)
        eventually(lambda: meter.stats.retries)
        own_redis.send(signal.SIGCONT)

        assert meter.flush(10)
        assert meter.stats.sent == 10
    held = ids_held(own_redis.url)
    assert set(held) == {*first, *second}
    assert all(held[one] == 1 for one in first)


def test_a_meter_waits_for_a_full_buffer(redis_url: str) -> None:
    with Meter(redis_url, "bus_1", high_water_events=10, flush_events=10) as meter:
        first = record(meter, 10)
        assert meter.flush()
        second = record(meter, 10)
        assert not meter.flush(0.3)
        assert (meter.stats.pending, ids_held(redis_url)) == (10, Counter(first))
        with Redis.from_url(redis_url) as client:
            client.flushall()

        assert meter.flush(10)
        assert ids_held(redis_url) == Counter(second)


def test_threads_share_a_meter(redis_url: str) -> None:
    ids: list[list[str]] = [[] for _ in range(8)]
    with Meter(redis_url, "bus_1", flush_interval_s=0.01) as meter:
        threads = [
            threading.Thread(target=lambda mine=mine: mine.extend(record(meter, 1000)))
            for mine in ids
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert ids_held(redis_url) == Counter(one for mine in ids for one in mine)


def test_summed_properties_reach_a_meter_through_redis(redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        publish_quantities(client, {BusinessId("bus_1"): {"call": ["tokens"]}})
        with Meter(redis_url, "bus_1") as meter:
            meter.record("call", "cus_1", metadata={"tokens": 5})
            assert meter.flush()
            with pytest.raises(InvalidInputError, match=r"metadata\.tokens"):
                meter.record("call", "cus_1", metadata={"tokens": "many"})
        publish_quantities(client, {})

        assert not client.exists(QUANTITIES)


PRODUCER = """
import faulthandler, os, signal, sys, threading, time
from metering.accept import Meter
how, url, report, patience_s = sys.argv[1:]
faulthandler.dump_traceback_later(0.9 * float(patience_s))  # says where it hangs, if it does
noted = open(report, "a", buffering=1)
def note(meter, n):
    noted.write(meter.record("call", f"cus_{n % 7}") + "\\n")
if how == "chained":
    def handler(signum, frame):
        noted.write("handler\\n")
        sys.exit(7)
    signal.signal(signal.SIGTERM, handler)
# Without Redis, closing takes its whole timeout, so that timeout is short.
options = {"flush_interval_s": 3600.0, "flush_events": 100_000}
options["close_timeout_s"] = 1.0 if how == "away" else 120.0
meter = Meter(url, "bus_1", **options)
second = Meter(url, "bus_1", **options)
for n in range(100):
    note(meter, n)
    note(second, n)
print("ready", flush=True)
if how == "exits":
    sys.exit(0)
if how == "raises":
    raise ZeroDivisionError
if how == "busy":
    while True:
        note(meter, 1)
while True:
    # Short, because a signal just before a sleep does not end the sleep.
    time.sleep(0.1)
"""


def run_producer(
    how: str, url: str, folder: Path, variables: Mapping[str, str], signum: int | None = None
) -> tuple[int, list[str]]:
    """Run a producer process to its end; return its exit code and what it noted."""
    report = folder / "noted"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PRODUCER, how, url, str(report), str(PATIENCE_S)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(variables),
        cwd=ROOT,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.2 if how == "busy" else 0)
        if signum is not None:
            process.send_signal(signum)
        try:
            process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _out, stacks = process.communicate()
            pytest.fail(f"it did not end: {stacks.decode()}")
        finally:
            process.kill()
    return process.returncode, report.read_text().splitlines()


@pytest.mark.parametrize(
    ("how", "ending"),
    [
        ("exits", (None, 0)),
        ("raises", (None, 1)),
        ("sleeps", (signal.SIGTERM, -signal.SIGTERM)),
        ("chained", (signal.SIGTERM, 7)),
        ("sleeps", (signal.SIGINT, -signal.SIGINT)),
    ],
)
def test_a_process_sends_its_events_before_it_ends(
    redis_url: str,
    data_dir: Path,
    variables: Mapping[str, str],
    how: str,
    ending: tuple[int | None, int],
) -> None:
    """It ends as without a meter: same signal, same exit code, its own handler is called."""
    signum, code = ending
    returned, noted = run_producer(how, redis_url, data_dir, variables, signum)

    assert returned == code
    assert ("handler" in noted) == (how == "chained")
    assert ids_held(redis_url) == Counter(one for one in noted if one != "handler")


def test_sigterm_during_record_neither_hangs_nor_loses_events(
    redis_url: str, data_dir: Path, variables: Mapping[str, str]
) -> None:
    """The signal interrupts the main thread inside `record`, where it may hold any lock."""
    for attempt in range(5):
        folder = data_dir / str(attempt)
        folder.mkdir()
        with Redis.from_url(redis_url) as client:
            client.flushall()
        returned, noted = run_producer("busy", redis_url, folder, variables, signal.SIGTERM)

        assert returned == -signal.SIGTERM
        # Only events recorded after the signal may be lost.
        missing = set(noted) - set(ids_held(redis_url))
        assert missing <= set(noted[-max(1, len(missing)) :])
        assert len(missing) < len(noted) // 2
        assert len(noted) > 200


def test_sigterm_without_redis_ends_in_time(
    own_redis: OwnRedis, data_dir: Path, variables: Mapping[str, str]
) -> None:
    own_redis.kill()
    returned, noted = run_producer("away", own_redis.url, data_dir, variables, signal.SIGTERM)

    assert returned == -signal.SIGTERM
    assert len(noted) == 200


def test_a_forked_child_starts_empty_and_each_event_is_sent_once(redis_url: str) -> None:
    """Parent and child each have a thread and a connection."""
    with Meter(redis_url, "bus_1", flush_interval_s=3600.0, flush_events=10_000) as meter:
        before = record(meter, 100)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(PATIENCE_S)  # a child that hangs must not hang the tests
            try:
                mine = record(meter, 50)
                reply = "\n".join(mine) if meter.stats.recorded == 50 and meter.flush() else ""
                os.write(writer, reply.encode())
            finally:
                os._exit(0)
        os.close(writer)
        after = record(meter, 100)
        with os.fdopen(reader) as pipe:
            from_child = pipe.read().split()
        os.waitpid(child, 0)
        assert meter.flush()

    assert len(from_child) == 50
    assert ids_held(redis_url) == Counter(before + from_child + after)


def _record_and_return(meter: Meter) -> None:
    record(meter, 25)


def test_a_multiprocessing_child_sends_before_it_ends(redis_url: str) -> None:
    """Such a child runs no exit handlers."""
    with Meter(redis_url, "bus_1", flush_interval_s=3600.0) as meter:
        record(meter, 5)
        child = multiprocessing.get_context("fork").Process(
            target=_record_and_return, args=(meter,)
        )
        child.start()
        child.join(20)
        assert child.exitcode == 0
        eventually(lambda: ids_held(redis_url).total() == 25)

    assert ids_held(redis_url).total() == 30


def test_forks_while_threads_record_neither_hang_nor_lose_events(redis_url: str) -> None:
    """A child must not inherit a lock that a thread of the parent holds."""
    recorded: list[str] = []
    over = threading.Event()
    with Meter(redis_url, "bus_1", flush_interval_s=0.001, close_timeout_s=20) as meter:

        def traffic() -> None:
            while not over.is_set():
                recorded.append(meter.record("call", "cus_parent"))

        threads = [threading.Thread(target=traffic) for _ in range(3)]
        for thread in threads:
            thread.start()
        codes = [_fork_and_record(meter) for _ in range(20)]
        over.set()
        for thread in threads:
            thread.join()

    held = held_by_customer(redis_url)
    assert codes == [0] * 20
    assert Counter(held["cus_parent"]) == Counter(recorded)
    assert len(held["cus_child"]) == 20


def _fork_and_record(meter: Meter) -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE_S)
        try:
            meter.record("call", "cus_child")
            os._exit(0 if meter.flush(10) else 3)
        finally:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
