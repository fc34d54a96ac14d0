"""Processes of an earlier run. On Linux they end with their supervisor, but not at once."""

import contextlib
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from worker.local.files import write_private

STOP_TIMEOUT_S: Final = 10
# A worker whose Redis ended with it can hang in its shutdown; every task is safe to kill.
TERMINATE_TIMEOUT_S: Final = 2


def remember(path: Path, pids: Iterable[int]) -> None:
    """Write down the leaders of our process groups, each with the time of its start."""
    started: dict[int, float] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            started[pid] = psutil.Process(pid).create_time()
    write_private(path, json.dumps(started))


def stop_remembered(path: Path) -> None:
    """End the remembered processes that still run, but no later process with the same id."""
    try:
        started: dict[str, float] = json.loads(path.read_text())
    except (OSError, ValueError):
        return
    found = []
    for pid, created_at in started.items():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(pid))
            if process.create_time() == created_at:
                process.terminate()
                found.append(process)
    psutil.wait_procs(found, timeout=TERMINATE_TIMEOUT_S)
    for process in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(found, timeout=STOP_TIMEOUT_S)


def stop_postgres(home: Path) -> None:
    """End the Postgres processes of this cluster, known by their working directory.

    A postmaster gets a fast shutdown. A backend that has outlived its postmaster is killed, because
    no new postmaster starts beside it.
    """
    found = [process for process in psutil.process_iter(["name"]) if _works_in(process, home)]
    postmaster = _postmaster_pid(home)
    for process in found:
        if process.pid == postmaster:
            process.send_signal(signal.SIGINT)
            psutil.wait_procs(found, timeout=STOP_TIMEOUT_S)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=STOP_TIMEOUT_S)


def _works_in(process: psutil.Process, home: Path) -> bool:
    try:
        return process.info["name"] == "postgres" and process.cwd() == str(home)
    except psutil.Error:
        return False


def _postmaster_pid(home: Path) -> int | None:
    try:
        first, *_ = (home / "postmaster.pid").read_text().splitlines()
        return int(first)
    except (OSError, ValueError):
        return None
