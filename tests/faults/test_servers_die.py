"""Processes and servers are killed or frozen under traffic: the stack recovers by itself.

The test prints the time from the return of the killed process to the next charge (`-s`).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from support.traffic import RECOVERED_WITHIN_S, Producer, Workload, frozen, wait_for
from worker.alive import is_alive
from worker.context import open_buffer
from worker.health import postgres_answers, redis_answers
from worker.local.up import Stack
from worker.session import Sessions, make_engine
from worker.settings import settings_from

StartStack = Callable[..., Stack]
StartCelery = Callable[..., int]

# --- killed ---------------------------------------------------------------------------------------


@dataclass
class Installation:
    """A stack with servers of its own, and its workload."""

    stack: Stack
    workload: Workload

    def is_whole_without(self, role: str, pid: int) -> bool:
        return self.stack.pids.get(role, pid) != pid and not self.stack.missing()

    def has_returned(self, role: str, pid: int) -> bool:
        """Tell whether another process has the role, and answers if it is a server."""
        if self.stack.pids.get(role, pid) == pid:
            return False
        answers = {
            "redis": lambda: redis_answers(self.stack.redis_url),
            "postgres": lambda: postgres_answers(self.stack.database_url),
        }
        return role not in answers or answers[role]()

    def is_charging(self, event_id: str) -> bool:
        """Tell whether an event ended in the ledger; not while a server is away."""
        with suppress(DBAPIError, RedisError):
            return self.workload.has_ended(event_id)
        return False


@pytest.fixture(scope="module")
def installation(module_data_dir: Path, variables: Mapping[str, str]) -> Iterator[Installation]:
    """One installation for all kills. Redis syncs every write, Postgres every commit."""
    overrides = {"GULLAK_DURABILITY": "strict", "GULLAK_BATCH_EVENTS": "200"}
    with Stack(module_data_dir / "data", variables=variables, overrides=overrides) as stack:
        urls = {"DATABASE_URL": stack.database_url, "REDIS_URL": stack.redis_url}
        config = settings_from({**urls, **overrides})
        engine = make_engine(config)
        buffer = open_buffer(config)
        yield Installation(stack, Workload.open(Sessions(engine), buffer))
        buffer.redis.close()
        engine.dispose()


@pytest.mark.parametrize("role", ["worker", "beat", "redis", "postgres"])
def test_traffic_survives_a_kill_and_is_charged_again_within_30_s(
    installation: Installation, role: str
) -> None:
    workload, stack = installation.workload, installation.stack
    with Producer(workload, stack.redis_url) as producer:
        recorded_before = producer.recorded()
        wait_for(lambda: installation.is_charging(recorded_before))
        pid = stack.pids[role]

        os.kill(pid, signal.SIGKILL)

        wait_for(lambda: installation.has_returned(role, pid))
        returned_at = time.monotonic()
        recorded_after = producer.recorded()
        wait_for(lambda: installation.is_charging(recorded_after))
        print(f"{role}: {time.monotonic() - returned_at:.1f} s after its return")  # noqa: T201
        wait_for(lambda: installation.is_whole_without(role, pid))
        producer.finish()

    workload.wait_drained()
    assert workload.broken() == []


# --- frozen, stopped, doubled, absent -------------------------------------------------------------


@pytest.fixture
def start_celery(
    database_url: str, redis_url: str, variables: Mapping[str, str], tmp_path: Path
) -> Iterator[StartCelery]:
    """Start another process beside a stack: `start_celery("beat") -> pid`, once it is ready."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str) -> int:
        alive = tmp_path / f"{argv[0]}.alive"
        urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "worker.app", "--quiet", *argv],
            env={**variables, **urls, "GULLAK_ALIVE_FILE": str(alive)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        wait_for(lambda: is_alive(alive, process.pid))
        return process.pid

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(RECOVERED_WITHIN_S)


@contextmanager
def batch_held(workload: Workload) -> Iterator[None]:
    """Keep a drain in the middle of its transaction: it waits for a wallet that this locks."""
    with workload.shop.sessions.transaction() as conn:
        conn.execute(text("SELECT 1 FROM wallets FOR UPDATE"))
        workload.send(300)
        wait_for(lambda: workload.waiting() > 0)
        yield


@pytest.mark.slow
def test_a_worker_that_is_frozen_inside_a_batch_is_replaced_and_can_resume(
    workload: Workload, start_stack: StartStack, start_celery: StartCelery
) -> None:
    sleeper = start_stack(GULLAK_IDLE_IN_TRANSACTION_TIMEOUT_MS="1000")
    with ExitStack() as asleep:
        with batch_held(workload):
            asleep.enter_context(frozen(sleeper.pids["worker"]))
        start_celery("worker", "-n", "other@%h", "-Q", "debit", "--concurrency", "1")
        workload.wait_drained()
    workload.send(200)

    workload.wait_drained()
    wait_for(lambda: not sleeper.missing())
    assert workload.broken() == []


@pytest.mark.slow
def test_a_worker_killed_inside_a_batch_is_replaced_and_the_batch_is_charged_once(
    workload: Workload, start_stack: StartStack
) -> None:
    stack = start_stack()
    with batch_held(workload):
        os.kill(stack.pids["worker"], signal.SIGKILL)

    workload.wait_drained()
    assert workload.broken() == []


@pytest.mark.slow
def test_a_worker_that_is_stopped_inside_a_batch_finishes_it(
    workload: Workload, start_stack: StartStack
) -> None:
    stack = start_stack()
    before = stack.pids["worker"]
    with batch_held(workload):
        os.kill(before, signal.SIGTERM)
    wait_for(lambda: stack.pids.get("worker", before) != before)

    workload.wait_drained()
    assert workload.counted("replayed_count") == 0
    assert workload.broken() == []


@pytest.mark.slow
def test_two_beats_at_once_have_each_effect_once(
    workload: Workload, start_stack: StartStack, start_celery: StartCelery
) -> None:
    stack = start_stack()
    second = start_celery("beat")

    for _ in range(3):
        workload.send(200)
        workload.wait_drained()
        workload.top_up()

    assert stack.pids["beat"] != second
    assert not stack.missing()
    assert workload.broken() == []


@pytest.mark.slow
def test_a_worker_drains_by_itself_while_beat_is_frozen(
    workload: Workload, start_stack: StartStack
) -> None:
    stack = start_stack()
    log = stack.data_dir / "log" / "worker.log"
    with frozen(stack.pids["beat"]):
        wait_for(lambda: "beat is silent" in log.read_text())

        workload.send(300)

        workload.wait_drained()
    assert workload.broken() == []
