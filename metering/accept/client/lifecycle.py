"""What the process does to every meter in it: exits, is terminated, forks.

SIGTERM, where nothing else handles it, would end the process without its exit handlers. The
handler here lets the meters' own threads send what is pending while the main thread goes on, and
the last of them to be through repeats the signal, which then has its default effect. Nothing
waits inside the handler: it may have interrupted the holder of any lock.
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
        """Send what is pending, in a bounded time."""

    def send_now(self) -> None:
        """Start sending everything now. Takes no lock."""

    def hurry(self) -> None:
        """Start sending everything now, and give it up after a while. Takes no lock."""

    def is_through(self) -> bool:
        """Tell whether what was pending at `hurry` is sent, or its time is over. Takes no lock."""

    def quiet(self) -> AbstractContextManager[object]:
        """Return what holds the meter still while the process forks."""

    def start_afresh(self) -> None:
        """Forget the parent's events, thread and connection: this is the child."""


class _Process:
    """The one state of this process."""

    def __init__(self) -> None:
        self.members: WeakSet[Member] = WeakSet()
        self.is_hooked = False
        self.is_dying = False
        self.still: ExitStack | None = None
        self.previous: object = None


_process: Final = _Process()


def enrol(member: Member, *, handle_sigterm: bool) -> None:
    """Take care of a meter: at exit, over a fork and, if asked for, on SIGTERM."""
    if not _process.is_hooked:
        _process.is_hooked = True
        atexit.register(close_all)
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork, after_in_child=_start_afresh
        )
    _process.members.add(member)
    if handle_sigterm:
        _handle_sigterm()


def close_all() -> None:
    """Close every meter of this process: at exit."""
    for member in list(_process.members):
        member.close()


def close_all_in_multiprocessing_child() -> None:
    """Close at the end of a `multiprocessing` child too: it leaves without exit handlers."""
    if "multiprocessing.process" not in sys.modules:
        return
    from multiprocessing import parent_process, util  # noqa: PLC0415 - only such a child needs it

    if parent_process() is not None:
        util.Finalize(None, close_all, exitpriority=10)


def _handle_sigterm() -> None:
    """Install the handler before the one that is there, unless SIGTERM is ignored."""
    if current_thread() is not main_thread():
        return  # Python allows it nowhere else
    present = signal.getsignal(signal.SIGTERM)
    if present in (_on_sigterm, signal.SIG_IGN, None):
        return
    _process.previous = present
    signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    if callable(_process.previous):
        # It knows how this process ends, and whether: usually by exiting, which closes the meters.
        for member in list(_process.members):
            member.send_now()
        _process.previous(signum, frame)
    elif _process.is_dying:
        _die(signum)  # repeated by the last meter, or by someone who does not want to wait
    else:
        _process.is_dying = True
        for member in list(_process.members):
            member.hurry()
        if _all_through():
            _die(signum)


def _all_through() -> bool:
    return all(member.is_through() for member in list(_process.members))


def _die(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def leave_if_last() -> None:
    """Repeat SIGTERM if the process waits for its meters and all of them are through."""
    if _process.is_dying and _all_through():
        os.kill(os.getpid(), signal.SIGTERM)


def _before_fork() -> None:
    _process.still = ExitStack()
    for member in list(_process.members):
        _process.still.enter_context(member.quiet())


def _after_fork() -> None:
    if _process.still is not None:
        _process.still.close()


def _start_afresh() -> None:
    _process.still = None
    _process.is_dying = False
    for member in list(_process.members):
        member.start_afresh()
