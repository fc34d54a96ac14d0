"""Killed processes: SIGKILL in the middle of the traffic, and how long until all is well again."""

import contextlib
import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from metering.buffer.keys import Shard
from worker.demo.watch import Sample

RECOVER_WITHIN_S: Final = 30.0


class Victim(StrEnum):
    """What `--kill` takes."""

    WORKER = "worker"
    BEAT = "beat"
    REDIS = "redis"
    POSTGRES = "postgres"
    ALL = "all"


@dataclass(slots=True)
class Kill:
    """One kill, and how many seconds after it all was well again, in two steps.

    back     another process is ready, and both stores answer
    drained  every shard has drained the events that it held when the process was back
    """

    role: str
    pid: int
    at_event: int
    back_s: float | None = None
    drained_s: float | None = None
    _at_s: float = field(default_factory=time.monotonic)
    _accepted: Mapping[Shard, int] = field(default_factory=dict)

    @property
    def recovered(self) -> bool:
        """Whether it was well again in time."""
        return self.drained_s is not None and self.drained_s <= RECOVER_WITHIN_S

    def __str__(self) -> str:
        """Return the kill in a few words."""
        return f"{self.role} back after {_time(self.back_s)}, drained after {_time(self.drained_s)}"

    def as_json(self) -> dict[str, object]:
        """Return the kill for a program."""
        names = ("role", "pid", "at_event", "back_s", "drained_s", "recovered")
        return {name: getattr(self, name) for name in names}

    def is_back(self, pid: int | None, missing: Collection[str], sample: Sample) -> bool:
        """Tell whether another process is ready; note the time, and what each shard holds.

        `pid`: the process that has the role now. `missing`: the roles that are not ready.
        """
        if sample.away or pid in (None, self.pid) or self.role in missing:
            return False
        self.back_s = time.monotonic() - self._at_s
        self._accepted = {shard: counters.accepted for shard, counters in sample.shards.items()}
        return True

    def is_drained(self, sample: Sample) -> bool:
        """Tell whether each shard has drained what it held when the process was back."""
        if self.back_s is None or sample.away:
            return False
        if any(sample.shards[each].settled < count for each, count in self._accepted.items()):
            return False
        self.drained_s = time.monotonic() - self._at_s
        return True


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def victims_of(chosen: Sequence[Victim]) -> list[Victim]:
    """Return the roles to kill, in the order given; `all` stands for each of them."""
    every = [victim for victim in Victim if victim is not Victim.ALL]
    return [role for victim in chosen for role in (every if victim is Victim.ALL else [victim])]


def kill(role: Victim, pid: int, at_event: int) -> Kill:
    """Kill a process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return Kill(str(role), pid, at_event)
