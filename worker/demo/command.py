"""`gullak demo`: start the stack, send traffic, kill processes, reconcile."""

import json
import logging
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

import psutil
import typer
from rich.console import Console

from metering.errors import GullakError
from worker.demo.kills import Victim, victims_of
from worker.demo.live import Display
from worker.demo.report import Report
from worker.demo.run import Plan, StoreLostError, play
from worker.demo.traffic import plan_invented, plan_trace, read_trace
from worker.demo.watch import STORE_AWAY
from worker.local.up import Stack
from worker.log import setup_logging
from worker.settings import environment, settings_from

EVENTS_DEFAULT: Final = 50_000
INTERRUPTED: Final = 130
WIDTH_OF_A_FILE: Final = 160
_NOT_PASSED_ON: Final = ("GULLAK_", "PROMETHEUS_", "DATABASE_URL", "REDIS_URL", "BROKER_URL")
# The demo kills redis-server, so it waits for the fsync of each write: with `everysec` Redis may
# owe up to a second of acknowledged events to its file, and the account would miss them.
_OVERRIDES: Final = {
    "GULLAK_DURABILITY": "strict",
    # The receiver listens on this machine.
    "GULLAK_WEBHOOK_ALLOW_PRIVATE": "true",
    # A call that was under way when a server was killed is taken up again when its lease is over:
    # the timeout and a margin.
    "GULLAK_WEBHOOK_TIMEOUT_S": "3",
    # One payment is made and not answered for: the worker should not hang on it for long.
    "GULLAK_CHARGE_TIMEOUT_MS": "2000",
}

# How long sending takes: enough to watch, and for each kill to fall into the traffic.
SENDING_MIN_S: Final = 6.0
SENDING_MAX_S: Final = 20.0
PER_KILL_S: Final = 6.0
EVENTS_PER_S_MAX: Final = 4_000


class DemoInterruptedError(GullakError):
    """The demo was interrupted."""


def demo(  # noqa: PLR0917 - Typer reads the options from the signature
    events: Annotated[
        int | None,
        typer.Option(min=1, help="Events to send: 50,000, or all rows of the trace once."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="CSV of TIMESTAMP, ContextTokens, GeneratedTokens: an event per row.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    kill: Annotated[
        list[Victim] | None, typer.Option(help="What to kill; may be repeated.  [default: worker]")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the servers keep their data: kept.", file_okay=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the account and all figures here.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written when all is ready: URLs and process ids as JSON.")
    ] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="Print without colours.")] = False,  # noqa: FBT002
) -> None:
    """Show the whole path at work: usage in, debits, alerts out, while processes are killed.

    Exits 0 only if every line of the account at the end holds.
    """
    console = Console(no_color=no_color or None)
    if not console.is_terminal:
        console = Console(no_color=no_color or None, width=WIDTH_OF_A_FILE)
    plan = _plan(events, trace, victims_of(kill or [Victim.WORKER]))
    try:
        with _folder(data_dir, console) as folder:
            report = _played(plan, folder, ready_file, console)
            report.print_to(console)
            if json_file:
                json_file.write_text(json.dumps(report.as_json(), indent=2))
            if not report.ok:
                raise typer.Exit(1)
    except DemoInterruptedError:
        console.print("stopped")
        raise typer.Exit(INTERRUPTED) from None


def _plan(events: int | None, trace: Path | None, victims: Sequence[Victim]) -> Plan:
    rows = read_trace(trace) if trace else []
    count = events or len(rows) or EVENTS_DEFAULT
    full = min(1.0, count / EVENTS_DEFAULT)
    duration_s = SENDING_MIN_S + (SENDING_MAX_S - SENDING_MIN_S) * full
    duration_s += PER_KILL_S * max(0, len(victims) - 1)
    duration_s = max(duration_s, count / EVENTS_PER_S_MAX)
    planned = plan_trace(rows, count) if rows else plan_invented(count, duration_s)
    return Plan(planned, duration_s, victims, str(trace) if trace else None)


@contextmanager
def _folder(given: Path | None, console: Console) -> Iterator[Path]:
    """Give a data directory: the one asked for, or one that goes unless there is a failure."""
    if given is not None:
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="gullak-demo-"))
    try:
        yield folder
    except DemoInterruptedError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        console.print(f"data and logs are kept in {folder}", highlight=False)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _played(plan: Plan, folder: Path, ready_file: Path | None, console: Console) -> Report:
    """Run the plan on a stack of its own.

    Raises:
        StoreLostError: a server that was killed did not come back.
        DemoInterruptedError: Ctrl-C or SIGTERM; everything is stopped.

    """
    variables = {k: v for k, v in environment().items() if not k.startswith(_NOT_PASSED_ON)}
    _log_to(folder / "log" / "demo.log")
    stack = Stack(folder, ready_file=ready_file, variables=variables, overrides=_OVERRIDES)
    interruption = Interruption(stack)
    interruption.listen()
    try:
        with Display(console) as display:
            display.tell("starting Postgres, Redis, workers, beat and API")
            with stack:
                interruption.check()
                display.tell("the stack is ready; half of the traffic goes over HTTP")
                urls = {"DATABASE_URL": stack.database_url, "REDIS_URL": stack.redis_url}
                config = settings_from({**_OVERRIDES, **urls})
                return play(stack, config, plan, display, interruption.check)
    except Exception as error:
        interruption.check()  # then the servers were killed, and the error follows from that
        if isinstance(error, STORE_AWAY):
            cause = type(error).__name__
            raise StoreLostError(f"a server did not come back: {cause}") from error
        raise


def _log_to(path: Path) -> None:
    """Send this process's log to a file: the display has the terminal."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    setup_logging(settings_from({"GULLAK_LOG_FORMAT": "json"}))
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(path.open("a"))


@dataclass(slots=True)
class Interruption:
    """Ctrl-C and SIGTERM: all processes are killed, and the demo ends where it checks next.

    The handler raises nothing, because an exception in the middle of other code can get lost.
    """

    stack: Stack
    requested: bool = False

    def listen(self) -> None:
        """Handle the signals until this process ends."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def check(self) -> None:
        """End the demo if that was requested.

        Raises:
            DemoInterruptedError: it was.

        """
        if self.requested:
            raise DemoInterruptedError

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        for _ in range(2):  # asked twice, it waits for no process
            self.stack.stop()
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
