"""A worker whose acknowledgements failed acknowledges again; a worker that is busy goes on."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from support.traffic import RECOVERED_WITHIN_S, Crowd, wait_for
from worker.alive import is_alive

StartWorker = Callable[[int], "subprocess.Popen[bytes]"]


@pytest.fixture
def start_worker(
    database_url: str, redis_url: str, variables: Mapping[str, str], tmp_path: Path
) -> Iterator[StartWorker]:
    """Start a worker of two children, of whose two places so many are lost, once it is ready."""
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
def drains_held(crowd: Crowd) -> Iterator[None]:
    """Keep both children in the middle of a drain: they wait for wallets that we hold."""
    with crowd.shop.sessions.transaction() as conn:
        conn.execute(text("SELECT 1 FROM wallets FOR UPDATE"))
        crowd.send(300)
        wait_for(lambda: crowd.waiting() >= 2)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 2])
def test_a_worker_whose_acknowledgements_failed_acknowledges_again_and_works(
    crowd: Crowd, start_worker: StartWorker, tmp_path: Path, lost: int
) -> None:
    worker = start_worker(lost)

    crowd.send(100)
    crowd.wait_drained()

    log = tmp_path / "worker.log"
    wait_for(lambda: log.read_text().count("acknowledged again") == lost)
    time.sleep(3)
    assert worker.poll() is None
    assert log.read_text().count("acknowledged again") == lost
    assert crowd.broken() == []


@pytest.mark.slow
def test_a_worker_whose_children_are_all_busy_goes_on_also_when_it_is_told_to_stop(
    crowd: Crowd, start_worker: StartWorker
) -> None:
    worker = start_worker(0)
    with drains_held(crowd):
        time.sleep(6)
    crowd.wait_drained()
    assert worker.poll() is None
    with drains_held(crowd):
        worker.send_signal(signal.SIGTERM)
        time.sleep(6)
        assert worker.poll() is None

    assert worker.wait(RECOVERED_WITHIN_S) == 0
