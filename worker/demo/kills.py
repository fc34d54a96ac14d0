"""Killed processes: SIGKILL in the middle of the traffic, and how long until all is well again."""

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from worker.demo.producers import Pace
from worker.demo.watch import Sample

RECOVER_WITHIN_S: Final = 30.0


class Victim(StrEnum):
    """What `--kill` takes."""

    WORKER = "worker"
    BEAT = "beat"
    REDIS = "redis"
    POSTGRES = "postgres"
    ALL = "all"


class Processes(Protocol):
    """What is asked of the stack."""

    @property
    def api_url(self) -> str:
        """Where the HTTP edge listens."""

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids by role, now."""

    def missing(self) -> list[str]:
        """Return the roles that are not ready now."""


@dataclass(slots=True)
class Kill:
    """One kill; times in seconds after it, None while it has not come to that.

    back     a new process is there and ready
    drained  and all that had been accepted by then is debited
    """

    role: str
    pid: int
    killed_at_s: float
    at_event: int
    accepted_then: int = 0
    back_s: float | None = None
    drained_s: float | None = None

    @property
    def recovered(self) -> bool:
        """Whether it was well again in time."""
        return self.drained_s is not None and self.drained_s <= RECOVER_WITHIN_S


def victims_of(chosen: Sequence[Victim]) -> list[Victim]:
    """Return the roles to kill, in the order given; `all` stands for each of them."""
    every = [victim for victim in Victim if victim is not Victim.ALL]
    return [role for victim in chosen for role in (every if victim is Victim.ALL else [victim])]


class Killer:
    """Kills one role after the other, spread over the traffic, the next when the last is well.

    The traffic waits for a kill that is due, so that each comes in its middle. `tick` is called
    several times a second.
    """

    def __init__(
        self,
        processes: Processes,
        pace: Pace,
        roles: Sequence[Victim],
        events: int,
        tell: Callable[[str], None],
    ) -> None:
        self._processes, self._pace, self._events, self._tell = processes, pace, events, tell
        self._waiting = deque(
            (role, events * (number + 1) // (len(roles) + 1)) for number, role in enumerate(roles)
        )
        self.kills: list[Kill] = []
        self._limit()

    @property
    def is_done(self) -> bool:
        """Whether every kill has happened and was recovered from, or is past waiting for."""
        return not self._waiting and (not self.kills or self._is_over(self.kills[-1]))

    def tick(self, sent_count: int, sample: Sample) -> None:
        """Do what is due now."""
        last = self.kills[-1] if self.kills else None
        if last is not None and not self._is_over(last):
            self._follow(last, sample)
        elif self._waiting and sent_count >= self._waiting[0][1]:
            self._kill(sent_count)

    def _limit(self) -> None:
        self._pace.limit = self._waiting[0][1] if self._waiting else self._events

    def _kill(self, sent_count: int) -> None:
        role = str(self._waiting[0][0])
        pid = self._processes.pids.get(role)
        if pid is None:
            return  # it is being started: next time
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill(role, pid, time.monotonic(), sent_count))
        self._tell(f"killed {role} (process {pid})")
        self._waiting.popleft()
        self._limit()

    def _follow(self, kill: Kill, sample: Sample) -> None:
        after_s = time.monotonic() - kill.killed_at_s
        if kill.back_s is None:
            if self._is_back(kill):
                kill.back_s, kill.accepted_then = after_s, sample.counts.accepted
                self._tell(f"{kill.role} is back after {after_s:.1f} s")
        elif not sample.away and sample.counts.settled >= kill.accepted_then:
            kill.drained_s = after_s
            self._tell(f"drained again {after_s:.1f} s after {kill.role} was killed")

    def _is_back(self, kill: Kill) -> bool:
        pid = self._processes.pids.get(kill.role)
        return pid not in (None, kill.pid) and kill.role not in self._processes.missing()

    def _is_over(self, kill: Kill) -> bool:
        waited_s = time.monotonic() - kill.killed_at_s
        return kill.drained_s is not None or waited_s > RECOVER_WITHIN_S
