"""Exit, SIGTERM and fork of a process, for all its meters.

By default, SIGTERM ends a process without its exit handlers. The handler here lets the flushers
send the pending events while the main thread goes on. The last flusher that is done repeats the
signal, which then has its default effect. The handler never waits: it may have interrupted the
holder of any lock.
"""

import atexit
import os
import signal
import sys
from contextlib import AbstractContextManager, ExitStack
from threading import current_thread, main_thread
from types import FrameType
from typing import Final, Protocol
from weakref import WeakSet


class Member(Protocol):
    """A meter, as this module sees it."""

    def close(self) -> bool:
        """Send the pending events, in a bounded time."""

    def send_now(self) -> None:
        """Start sending everything now. Takes no lock."""

    def hurry(self) -> None:
        """Start sending everything now, for a bounded time. Takes no lock."""

    def is_done(self) -> bool:
        """Tell whether the events before `hurry` are sent or the time is over. Takes no lock."""

    def fork_guard(self) -> AbstractContextManager[object]:
        """Return the context in which the process may fork."""

    def reset(self) -> None:
        """Forget the events, the thread and the connection of the parent, in a forked child."""


class _Process:
    """State of this process."""

    def __init__(self) -> None:
        self.members: WeakSet[Member] = WeakSet()
        self.is_hooked = False
        self.is_dying = False
        self.fork_guards: ExitStack | None = None
        self.previous: object = None


_process: Final = _Process()


def enrol(member: Member, *, handle_sigterm: bool) -> None:
    """Handle exit and fork for a meter, and SIGTERM if `handle_sigterm`."""
    if not _process.is_hooked:
        _process.is_hooked = True
        atexit.register(close_all)
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_reset)
    _process.members.add(member)
    if handle_sigterm:
        _handle_sigterm()


def close_all() -> None:
    """Close every meter of this process."""
    for member in list(_process.members):
        member.close()


def close_all_in_multiprocessing_child() -> None:
    """Close the meters of a `multiprocessing` child, which ends without exit handlers."""
    if "multiprocessing.process" not in sys.modules:
        return
    from multiprocessing import parent_process, util  # noqa: PLC0415 - for such a child only

    if parent_process() is not None:
        util.Finalize(None, close_all, exitpriority=10)


def _handle_sigterm() -> None:
    """Install the handler in front of the present one, unless SIGTERM is ignored."""
    if current_thread() is not main_thread():
        return  # Python allows it in no other thread
    present = signal.getsignal(signal.SIGTERM)
    if present in (_on_sigterm, signal.SIG_IGN, None):
        return
    _process.previous = present
    signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    if callable(_process.previous):
        # That handler decides whether the process ends. An exit closes the meters.
        for member in list(_process.members):
            member.send_now()
        _process.previous(signum, frame)
    elif _process.is_dying:
        _die(signum)  # repeated by the last flusher, or by an impatient operator
    else:
        _process.is_dying = True
        for member in list(_process.members):
            member.hurry()
        if _are_all_done():
            _die(signum)


def _are_all_done() -> bool:
    return all(member.is_done() for member in list(_process.members))


def _die(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def die_if_all_done() -> None:
    """Repeat SIGTERM if the process only waits for its meters and all are done."""
    if _process.is_dying and _are_all_done():
        os.kill(os.getpid(), signal.SIGTERM)


def _before_fork() -> None:
    _process.fork_guards = ExitStack()
    for member in list(_process.members):
        _process.fork_guards.enter_context(member.fork_guard())


def _after_fork() -> None:
    if _process.fork_guards is not None:
        _process.fork_guards.close()


def _reset() -> None:
    _process.fork_guards = None
    _process.is_dying = False
    for member in list(_process.members):
        member.reset()
