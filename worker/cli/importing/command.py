"""`gullak import`: usage events from a file, resumable, refusals to a file with their reasons."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import SEEK_END
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from typer import Argument, Option

from metering.accept.event import AcceptLimits
from metering.accept.summed import Quantities
from metering.errors import (
    BufferUnavailableError,
    ConfigurationError,
    FieldProblem,
    InvalidInputError,
)
from metering.ids import BusinessId
from metering.money import plain
from metering.rate_card.cards import RateCards
from metering.usage.expected_cost import ExpectedCost, PricingSink
from worker.cli.command import command
from worker.cli.importing.progress import Progress, check_same, load_progress
from worker.cli.importing.run import Import
from worker.cli.importing.usage_file import Format, Parse, csv_parser, parse_ndjson, read_lines
from worker.cli.page import Page
from worker.cli.target import Target

EXIT_SOME_REFUSED: Final = 2
DAY_S: Final = 86_400
AGE_DAYS_MAX: Final = 36_500


@dataclass(frozen=True, slots=True)
class Imported:
    """How far an import came, and the cost of the events of this run."""

    progress: Progress
    expected: ExpectedCost
    was_finished: bool

    @property
    def refused_file(self) -> str | None:
        """Where the refused lines are, if there are any."""
        return self.progress.refused_file if self.progress.refused else None

    def as_json(self) -> dict[str, object]:
        """Return it for programs."""
        expected = self.expected
        return {
            "sent": self.progress.sent,
            "refused": self.progress.refused,
            "refused_file": self.refused_file,
            "was_finished": self.was_finished,
            "this_run": {
                "charged": expected.charged,
                "cost_minor": dict(sorted(expected.cost_minor.items())),
                "kept_free": expected.kept_free,
                "repeated": expected.repeated,
                "will_be_refused": dict(sorted(expected.refused.items())),
            },
        }

    def lines(self) -> Iterator[str]:
        """Yield it for people."""
        progress, expected = self.progress, self.expected
        before = "imported before: " if self.was_finished else ""
        where = f", see {self.refused_file}" if self.refused_file else ""
        yield f"{before}{progress.sent} sent, {progress.refused} refused{where}"
        if progress.too_old:
            days = "as many days as they are old"
            yield f"{progress.too_old} are too old: --max-age-days takes them, with {days}"
        if self.was_finished:
            return
        costs = (f"{plain(cost)} {code}" for code, cost in sorted(expected.cost_minor.items()))
        cost = ", ".join(costs) or "nothing"
        yield f"{expected.charged} cost {cost} (minor units, at the prices of now)"
        if expected.repeated:
            yield f"{expected.repeated} were sent before: not charged again"
        if expected.kept_free:
            yield f"{expected.kept_free} are kept and charged to nobody: no meter or price"
        for reason, count in sorted(expected.refused.items()):
            yield f"{count} will be refused: {reason}; see gullak refused"


Column = Annotated[str, Option(help="CSV column.")]


PAGE: Final = Page(lambda done, _view: typer.echo("\n".join(done.lines())))


@command(PAGE, exit_code=lambda done: EXIT_SOME_REFUSED if done.progress.refused else 0)
def import_usage(
    target: Target,
    business: BusinessId,
    file: Annotated[
        Path, Argument(help="NDJSON or CSV.", exists=True, dir_okay=False, readable=True)
    ],
    file_format: Annotated[
        Format | None, Option("--format", help="Default: csv by the suffix .csv, else ndjson.")
    ] = None,
    refused: Annotated[
        Path | None, Option(help="Refused lines, NDJSON. Default: FILE.refused.ndjson.")
    ] = None,
    event_id_column: Column = "event_id",
    customer_column: Column = "customer_id",
    event_column: Column = "event_name",
    timestamp_column: Column = "timestamp",
    max_age_days: Annotated[
        int | None, Option(help="Take events up to this old (back-fill).", min=1, max=AGE_DAYS_MAX)
    ] = None,
) -> Imported:
    """Send the usage events of a file; after an interruption, run it again to go on.

    NDJSON: one event per line with event_id, customer_id, event_name, timestamp, metadata. CSV: a
    header with the first four; each other column is a key of the metadata, and a column called
    metadata holds a JSON object of more keys. A cell is a number if that number is written exactly
    so, else a text (1e5, 007); an empty cell is left out; a cell holds no line break. Each event
    needs an event_id and a timestamp: a line that is sent twice is then charged once.

    A bad line goes to the refusals file with its reason, and the import goes on. FILE.progress
    holds how far it came; with other options it begins anew. At the end it prints what the events
    cost. Exits 0 if all was sent, 2 if lines were refused, 1 if it could not go on (2 is also a
    misspelt option).
    """
    columns = {
        "event_id": event_id_column,
        "customer_id": customer_column,
        "event_name": event_column,
        "timestamp": timestamp_column,
    }
    refused = (refused or file.with_name(f"{file.name}.refused.ndjson")).resolve()
    if refused == file.resolve():
        raise InvalidInputError(FieldProblem("refused", "is the file that is imported"))
    file_format = file_format or ("csv" if file.suffix.lower() == ".csv" else "ndjson")
    # These options decide which events the file holds and which are taken.
    options = json.dumps([file_format, columns, max_age_days], sort_keys=True)
    path = file.with_name(f"{file.name}.progress")
    with _opened(file) as handle:
        progress = _progress(handle, Progress.begin(handle, business, refused, options), path)
        parse, body = _parser(handle, file_format, columns)
        if progress.offset == 0:
            progress = replace(progress, offset=body[0], lines=body[1])
        was_finished = path.exists() and progress.offset == handle.seek(0, SEEK_END)
        sink = PricingSink(target.buffer, target.transaction, RateCards(target.currencies))
        quantities = Quantities(target.buffer.redis)
        job = Import(sink, _limits(target, max_age_days), quantities, progress, path)
        _run(job, handle, parse)
    return Imported(job.progress, sink.expected, was_finished)


def _progress(handle: BinaryIO, fresh: Progress, path: Path) -> Progress:
    """Return how far an import came, or a fresh beginning if the options differ."""
    saved = load_progress(path) or fresh
    check_same(saved, fresh, handle, path)
    return saved if saved.options in {fresh.options, ""} else fresh


def _limits(target: Target, max_age_days: int | None) -> AcceptLimits:
    config = target.settings
    age_max_s = config.event_age_max_s if max_age_days is None else max_age_days * DAY_S
    return AcceptLimits(age_max_s=age_max_s, ahead_max_s=config.event_ahead_max_s)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """Open a file for one import at a time: two would overwrite each other's progress."""
    try:
        handle = file.open("rb")
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"{file} is being imported by another gullak") from None
        yield handle


def _parser(
    handle: BinaryIO, file_format: Format, columns: Mapping[str, str]
) -> tuple[Parse, tuple[int, int]]:
    """Return the parser of a line, and where events begin: offset and number of lines before."""
    if file_format == "ndjson":
        return parse_ndjson, (0, 0)
    handle.seek(0)
    header = next(read_lines(handle), None)
    if header is None:
        raise InvalidInputError(FieldProblem("header", "is missing: the file is empty"))
    return csv_parser(header, columns), (header.end, header.number)


def _run(job: Import, handle: BinaryIO, parse: Parse) -> None:
    refused_file = Path(job.progress.refused_file)
    with _refusals(refused_file, job) as refusals:
        try:  # before anything is sent
            job.progress.save(job.progress_path)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {job.progress_path}: {error.strerror}"
            ) from error
        try:
            _show(job, handle, parse, refusals)
        except (KeyboardInterrupt, BufferUnavailableError):
            line = job.progress.lines
            typer.echo(f"stopped after line {line}; the same command goes on there", err=True)
            raise
    if not job.progress.refused:
        refused_file.unlink(missing_ok=True)


@contextmanager
def _refusals(path: Path, job: Import) -> Iterator[BinaryIO]:
    """Open the refusals file where the progress left it; never overwrite another file."""
    if not job.progress_path.exists() and path.exists() and path.stat().st_size:
        reason = f"{path} exists: move it away, or name another"
        raise InvalidInputError(FieldProblem("refused", reason))
    try:
        path.touch(mode=0o600)
        handle = path.open("r+b")
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    with handle:
        handle.truncate(min(job.progress.refused_bytes, handle.seek(0, SEEK_END)))
        handle.seek(0, SEEK_END)
        yield handle


def _show(job: Import, handle: BinaryIO, parse: Parse, refusals: BinaryIO) -> None:
    """Run the import under a bar that counts bytes."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[sent]} sent, {task.fields[refused]} refused"),
        TimeRemainingColumn(),
    )
    total = handle.seek(0, SEEK_END)
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("importing", total=total, sent=0, refused=0)
        job.on_wait = lambda s: bar.update(task, description=f"no room; again in {s} s")
        for done in job.run(handle, parse, refusals):
            bar.update(
                task,
                description="importing",
                completed=done.offset,
                sent=done.sent,
                refused=done.refused,
            )
