import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from worker.local.supervisor import Role, RoleNotReadyError, StopRequestedError, Supervisor


def role(
    name: str,
    script: str,
    *,
    tier: int = 0,
    is_ready: Callable[[int], bool] = lambda _pid: True,
    grace_s: float = 5.0,
    **more: Any,
) -> Role:
    argv, env = [sys.executable, "-c", script], dict(os.environ)
    return Role(
        name=name, argv=argv, env=env, tier=tier, is_ready=is_ready, grace_s=grace_s, **more
    )


SLEEP = "import time; time.sleep(600)"


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_made(file: Path, _pid: int) -> bool:
    return file.exists()


@contextmanager
def watching(*roles: Role) -> Iterator[Supervisor]:
    """A running supervisor in its own thread, as in a stack."""
    supervisor = Supervisor()

    def work() -> None:
        try:
            supervisor.start(roles)
            supervisor.watch()
        finally:
            supervisor.close()

    thread = Thread(target=work)
    thread.start()
    try:
        wait_for(lambda: len(supervisor.pids) == len(roles))
        yield supervisor
    finally:
        supervisor.stop()
        thread.join()


def test_a_process_that_dies_is_replaced() -> None:
    with watching(role("one", SLEEP)) as supervisor:
        first = supervisor.pids["one"]

        os.kill(first, signal.SIGKILL)

        wait_for(lambda: supervisor.pids.get("one", first) != first)


def test_the_wait_before_a_restart_grows() -> None:
    spawned: list[float] = []
    supervisor = Supervisor(lambda: spawned.append(time.monotonic()))
    supervisor.start([role("broken", "raise SystemExit(1)")])
    thread = Thread(target=supervisor.watch)
    thread.start()

    wait_for(lambda: len(spawned) >= 4)
    supervisor.stop()
    thread.join()
    supervisor.close()

    waits = [later - earlier for earlier, later in pairwise(spawned)]
    assert waits[0] >= 0.2
    assert waits[1] >= 0.4
    assert waits[2] >= 0.8


def test_children_of_a_dead_process_are_killed(tmp_path: Path) -> None:
    orphan = tmp_path / "orphan"
    script = (
        "import os, pathlib, subprocess, sys, time;"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}]);"
        f"pathlib.Path({str(orphan)!r}).write_text(str(child.pid)); time.sleep(600)"
    )
    with watching(role("parent", script)) as supervisor:
        wait_for(lambda: orphan.exists() and orphan.read_text())
        child = psutil.Process(int(orphan.read_text()))

        os.kill(supervisor.pids["parent"], signal.SIGKILL)

        wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_tier_starts_when_the_one_below_is_ready(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    lower = role(
        "lower",
        f"import pathlib, time; time.sleep(0.3); pathlib.Path({str(ready)!r}).touch(); {SLEEP}",
        is_ready=lambda _pid: ready.exists(),
    )
    seen: list[bool] = []

    def look(_pid: int) -> bool:
        seen.append(ready.exists())
        return True

    upper = role("upper", SLEEP, tier=1, is_ready=look)

    with watching(upper, lower):
        wait_for(lambda: seen)

    assert all(seen)


def test_tiers_stop_in_reverse_order(tmp_path: Path) -> None:
    record = tmp_path / "record"
    script = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        f"    with open({str(record)!r}, 'a') as file: file.write(sys.argv[0] + '{{name}} ')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(tmp_path)!r}, '{{name}}').touch()\n"
        "time.sleep(600)"
    )
    names = ("first", "second")
    roles = [
        role(
            name,
            script.format(name=name),
            tier=tier,
            is_ready=partial(is_made, tmp_path / name),
        )
        for tier, name in enumerate(names)
    ]
    with watching(*roles) as supervisor:
        wait_for(lambda: not supervisor.missing())

    assert record.read_text().replace("-c", "").split() == ["second", "first"]


def test_a_process_that_ignores_the_signal_is_killed_after_its_grace() -> None:
    script = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
    with watching(role("deaf", script, grace_s=0.3)) as supervisor:
        process = psutil.Process(supervisor.pids["deaf"])

    assert not process.is_running()


def test_a_second_stop_does_not_wait() -> None:
    script = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
    began = time.monotonic()
    with watching(role("deaf", script, grace_s=600.0)) as supervisor:
        supervisor.stop()

    assert time.monotonic() - began < 60


def test_a_role_that_never_becomes_ready_is_named_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "slow.log"
    supervisor = Supervisor()

    slow = role("slow", SLEEP, is_ready=lambda _pid: False, ready_timeout_s=0.2, log_file=log)
    with pytest.raises(
        RoleNotReadyError, match=r"slow did not become ready within 0 s; see .*slow"
    ):
        supervisor.start([slow])
    supervisor.close()

    assert supervisor.pids == {}


def test_a_stop_ends_a_waiting_start() -> None:
    supervisor = Supervisor()
    supervisor.stop()

    with pytest.raises(StopRequestedError):
        supervisor.start([role("slow", SLEEP, is_ready=lambda _pid: False)])
    supervisor.close()


def test_a_role_that_is_not_ready_is_missing() -> None:
    ready: list[bool] = []
    with watching(role("late", SLEEP, is_ready=lambda _pid: bool(ready))) as supervisor:
        assert supervisor.missing() == ["late"]

        ready.append(True)

        assert supervisor.missing() == []
