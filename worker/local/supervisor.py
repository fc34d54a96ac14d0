"""A small supervisor: starts roles in order, restarts those that die, stops in reverse order."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import structlog

from metering.errors import ConfigurationError

TICK_S: Final = 0.05
BACK_OFF_FIRST_S: Final = 0.2
BACK_OFF_MAX_S: Final = 5.0
STABLE_AFTER_S: Final = 10.0  # after such a life the next wait is the shortest again
LOG_BYTES_MAX: Final = 16 << 20  # a log file larger than this is set aside at the next start
_PR_SET_PDEATHSIG: Final = 1

log = structlog.get_logger("gullak.supervisor")

# Loaded before any fork: between fork and exec nothing may be imported.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class RoleNotReadyError(ConfigurationError):
    """A process of the stack did not become ready."""

    def __init__(self, role: str, timeout_s: float, log_file: Path | None) -> None:
        self.role = role
        where = f"; see {log_file}" if log_file else ""
        super().__init__(f"{role} did not become ready within {timeout_s:.0f} s{where}")


class StopRequestedError(Exception):
    """The stack was asked to stop while it was starting."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """A process to keep alive.

    `tier`: roles of a tier start and stop together; a tier starts when the one below is ready.
    `is_ready` takes the process id. `env` is the whole environment. `on_exit` runs between the end
    of one process and the start of the next. Without `log_file` the output goes where ours goes.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    is_ready: Callable[[int], bool]
    tier: int
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 15.0
    ready_timeout_s: float = 120.0
    on_exit: Callable[[], None] | None = None
    log_file: Path | None = None


@dataclass
class _Running:
    """The state of one role."""

    role: Role
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    back_off_s: float = BACK_OFF_FIRST_S
    exits: int = 0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None


class Supervisor:
    """Keeps roles running. One thread calls it; `pids`, `missing` and `stop` are for any thread.

    That thread must outlive the processes: Linux signals them when the thread that forked ends.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._running: dict[str, _Running] = {}
        self._stopping = False
        self._hurried = False

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by role, of the roles that have a process now."""
        found = {name: running.pid for name, running in self._running.copy().items()}
        return {name: pid for name, pid in found.items() if pid is not None}

    def missing(self) -> list[str]:
        """Return the roles that are not ready now."""
        roles = self._running.copy().values()
        return [running.role.name for running in roles if not _is_ready(running)]

    def stop(self) -> None:
        """Ask `watch`, or a start that waits, to end. The second call kills instead of waiting.

        Safe in a signal handler: it sets plain flags, because an `Event` can deadlock there.
        """
        self._hurried = self._stopping
        self._stopping = True

    def start(self, roles: Sequence[Role]) -> None:
        """Start the roles, tier by tier, each when the tier before is ready.

        Raises: RoleNotReadyError if one is not ready in time, StopRequestedError after `stop`.
        """
        for tier in sorted({role.tier for role in roles}):
            batch = [role for role in roles if role.tier == tier]
            for role in batch:
                self._running[role.name] = _Running(role)
                self._spawn(self._running[role.name])
            for role in batch:
                self._await_ready(self._running[role.name])

    def watch(self) -> None:
        """Restart the processes that die, until `stop` is called."""
        while not self._stopping:
            self._tend()
            time.sleep(TICK_S)

    def close(self) -> None:
        """Stop every role: the last tier first, the roles of a tier together."""
        for tier in sorted({r.role.tier for r in self._running.values()}, reverse=True):
            batch = [r for r in self._running.values() if r.role.tier == tier]
            for running in batch:
                _signal(running, running.role.stop_signal)
            signalled_at = time.monotonic()
            for running in batch:
                self._await_end(running, signalled_at + running.role.grace_s)

    def _await_ready(self, running: _Running) -> None:
        role = running.role
        deadline = time.monotonic() + role.ready_timeout_s
        while not _is_ready(running):
            if self._stopping:
                raise StopRequestedError
            if time.monotonic() > deadline:
                raise RoleNotReadyError(role.name, role.ready_timeout_s, role.log_file)
            self._tend()
            time.sleep(TICK_S)

    def _await_end(self, running: _Running, deadline: float) -> None:
        process = running.process
        if process is None:
            return
        while process.poll() is None:
            if self._hurried or time.monotonic() > deadline:
                log.warning("killed: it did not stop in time", role=running.role.name)
                process.kill()
                process.wait()
            time.sleep(TICK_S)
        _clean_up(running, process)

    def _tend(self) -> None:
        for running in list(self._running.values()):
            if running.process is None:
                if time.monotonic() >= running.start_at:
                    self._spawn(running)
            elif running.process.poll() is not None:
                self._bury(running, running.process)

    def _bury(self, running: _Running, process: subprocess.Popen[bytes]) -> None:
        """Clean up after a process that ended by itself, and set when the next may start."""
        running.exits += 1
        lived_s = time.monotonic() - running.started_at
        if lived_s > STABLE_AFTER_S:
            running.back_off_s = BACK_OFF_FIRST_S
        log.warning("died", role=running.role.name, exit=process.returncode, lived_s=round(lived_s))
        _clean_up(running, process)
        running.start_at = time.monotonic() + running.back_off_s
        running.back_off_s = min(BACK_OFF_MAX_S, running.back_off_s * 2)

    def _spawn(self, running: _Running) -> None:
        running.process = _spawn(running.role)
        running.started_at = time.monotonic()
        if running.exits:
            log.info("started anew", role=running.role.name, pid=running.pid)
        self._on_change()


def _is_ready(running: _Running) -> bool:
    process = running.process
    return process is not None and process.poll() is None and running.role.is_ready(process.pid)


def _spawn(role: Role) -> subprocess.Popen[bytes]:
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        # Python warns of a fork beside threads. Only one system call runs between fork and exec.
        warnings.simplefilter("ignore", DeprecationWarning)
        output = _open_log(role.log_file, stack)
        return subprocess.Popen(  # noqa: S603
            role.argv,
            env=role.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
            preexec_fn=lambda: _die_with_parent(role.stop_signal),  # noqa: PLW1509
            user=role.user,
            group=role.user,
            extra_groups=[] if role.user else None,
            cwd="/" if role.user else None,  # our folder may be closed to the other user
        )


def _open_log(path: Path | None, stack: contextlib.ExitStack) -> IO[bytes] | None:
    if path is None:
        return None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_suffix(".old"))
    return stack.enter_context(path.open("ab"))


def _die_with_parent(stop_signal: int) -> None:
    """Ask Linux to signal this process when its parent ends, for whatever reason."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, stop_signal, 0, 0, 0)


def _signal(running: _Running, number: signal.Signals) -> None:
    if running.process is not None and running.process.poll() is None:
        running.process.send_signal(number)


def _clean_up(running: _Running, process: subprocess.Popen[bytes]) -> None:
    """Kill the rest of the group of a process, and forget it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    running.process = None
    if running.role.on_exit is not None:
        running.role.on_exit()
