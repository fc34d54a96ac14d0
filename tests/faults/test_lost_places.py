"""A worker repeats failed acknowledgements; a busy worker is not ended."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from support.traffic import RECOVERED_WITHIN_S, Workload, wait_for
from worker.alive import is_alive

StartWorker = Callable[[int], "subprocess.Popen[bytes]"]


@pytest.fixture
def start_worker(
    database_url: str, redis_url: str, variables: Mapping[str, str], tmp_path: Path
) -> Iterator[StartWorker]:
    """Start a worker with two children; once it is ready, a number of its acknowledgements fail."""
    started: list[subprocess.Popen[bytes]] = []
    log = (tmp_path / "worker.log").open("wb")

    def start(lost: int) -> "subprocess.Popen[bytes]":
        alive = tmp_path / f"{len(started)}.alive"
        tests = str(Path(__file__).parents[1])
        urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "PYTHONPATH": tests}
        places = {"LOST_PLACES": str(tmp_path / "lost"), "LOST_PLACES_NUMBER": str(lost)}
        argv = ["-m", "celery", "-A", "worker.app", "--quiet", "worker", "-c", "2"]
        process = subprocess.Popen(
            [sys.executable, *argv, "-I", "support.lost_places", "-Q", "debit,sweep"],
            env={**variables, **urls, **places, "GULLAK_ALIVE_FILE": str(alive)},
            stdout=log,
            stderr=log,
        )
        started.append(process)
        wait_for(lambda: process.poll() is not None or is_alive(alive, process.pid))
        return process

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(RECOVERED_WITHIN_S)
    log.close()


@contextmanager
def drains_held(workload: Workload) -> Iterator[None]:
    """Keep both children in the middle of a drain: they wait for wallets that this locks."""
    with workload.shop.sessions.transaction() as conn:
        conn.execute(text("SELECT 1 FROM wallets FOR UPDATE"))
        workload.send(300)
        wait_for(lambda: workload.waiting() >= 2)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 2])
def test_a_worker_repeats_failed_acknowledgements_and_works(
    workload: Workload, start_worker: StartWorker, tmp_path: Path, lost: int
) -> None:
    worker = start_worker(lost)

    workload.send(100)
    workload.wait_drained()

    log = tmp_path / "worker.log"
    wait_for(lambda: log.read_text().count("acknowledged again") == lost)
    time.sleep(3)
    assert worker.poll() is None
    assert log.read_text().count("acknowledged again") == lost
    assert workload.broken() == []


@pytest.mark.slow
def test_a_worker_whose_children_are_all_busy_is_not_ended_also_during_a_warm_shutdown(
    workload: Workload, start_worker: StartWorker
) -> None:
    worker = start_worker(0)
    with drains_held(workload):
        time.sleep(6)
    workload.wait_drained()
    assert worker.poll() is None
    with drains_held(workload):
        worker.send_signal(signal.SIGTERM)
        time.sleep(6)
        assert worker.poll() is None

    assert worker.wait(RECOVERED_WITHIN_S) == 0
