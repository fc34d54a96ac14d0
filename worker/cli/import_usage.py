"""`gullak import`: usage events from a file, resumable, refusals to a file with their reasons."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import SEEK_END
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)

from metering.accept.event import AcceptLimits
from metering.accept.record import UsageSink
from metering.accept.summed import Quantities
from metering.errors import (
    BufferUnavailableError,
    ConfigurationError,
    FieldProblem,
    InvalidInputError,
)
from metering.rate_card.cards import RateCards
from worker.cli.import_cost import Costs, PricingSink
from worker.cli.import_progress import Progress, check_same, load_progress
from worker.cli.import_run import Import
from worker.cli.options import AsJson, Business
from worker.cli.show import print_json
from worker.cli.target import DataDir, Target, business_of, open_target
from worker.cli.usage_file import Format, Parse, csv_parser, parse_ndjson, read_lines

EXIT_SOME_REFUSED: Final = 2
DAY_S: Final = 86_400
AGE_DAYS_MAX: Final = 36_500


def import_usage(
    *,
    file: Annotated[
        Path, typer.Argument(help="NDJSON or CSV.", exists=True, dir_okay=False, readable=True)
    ],
    business: Business = None,
    file_format: Annotated[
        Format | None,
        typer.Option("--format", help="Default: csv by the suffix .csv, else ndjson."),
    ] = None,
    refused: Annotated[
        Path | None, typer.Option(help="Refused lines, NDJSON. Default: FILE.refused.ndjson.")
    ] = None,
    event_id_column: Annotated[str, typer.Option(help="CSV column.")] = "event_id",
    customer_column: Annotated[str, typer.Option(help="CSV column.")] = "customer_id",
    event_column: Annotated[str, typer.Option(help="CSV column.")] = "event_name",
    timestamp_column: Annotated[str, typer.Option(help="CSV column.")] = "timestamp",
    max_age_days: Annotated[
        int | None,
        typer.Option(help="Take events up to this old (back-fill).", min=1, max=AGE_DAYS_MAX),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Send the usage events of a file; run again after an interruption, it goes on.

    NDJSON: one event per line with event_id, customer_id, event_name, timestamp, metadata. CSV: a
    header with these; all other columns are metadata. A cell is a number if that number is written
    just so, else a text (1e5, 007); an empty cell is left out; none holds a line break. Each event
    needs its event_id and timestamp: a line sent twice is then the same event, charged once.

    A bad line is written to the refusals file with its reason and does not stop the rest. How far
    the import came is in FILE.progress; with other options it begins anew. At the end it says what
    the events cost. Exits 0 if all was sent, 2 if lines were refused, 1 if it
    could not go on (2 is also a misspelt option).
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
    with open_target(data_dir) as target, _opened(file) as handle:
        with target.transaction() as conn:
            business_id = business_of(conn, business)
        path = file.with_name(f"{file.name}.progress")
        options = _options(file_format, columns, max_age_days)
        fresh = Progress.begin(handle, business_id, refused, options)
        progress = load_progress(path) or fresh
        check_same(progress, handle, path, business_id, refused)
        if progress.options != options and progress.options:
            progress = fresh
        parse, body = _parser(handle, file_format, columns)
        if progress.offset == 0:
            progress = replace(progress, offset=body[0], lines=body[1])
        was_finished = path.exists() and progress.offset == handle.seek(0, SEEK_END)
        limits = _limits(target, max_age_days)
        sink = PricingSink(target.buffer, target.transaction, RateCards(target.currencies))
        progress = _run(target, sink, handle, parse, progress, path=path, limits=limits)
    _report(progress, sink.costs, was_finished=was_finished, as_json=as_json)
    if progress.refused:
        raise typer.Exit(EXIT_SOME_REFUSED)


def _options(file_format: Format, columns: Mapping[str, str], max_age_days: int | None) -> str:
    """Return the options that decide which events a file holds and which are taken."""
    return json.dumps([file_format, columns, max_age_days], sort_keys=True)


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
    """Return what reads a line, and where events begin: offset and number of lines before."""
    if file_format == "ndjson":
        return parse_ndjson, (0, 0)
    handle.seek(0)
    header = next(read_lines(handle), None)
    if header is None:
        raise InvalidInputError(FieldProblem("header", "is missing: the file is empty"))
    return csv_parser(header, columns), (header.end, header.number)


def _run(
    target: Target,
    sink: UsageSink,
    handle: BinaryIO,
    parse: Parse,
    progress: Progress,
    *,
    path: Path,
    limits: AcceptLimits,
) -> Progress:
    refused_file = Path(progress.refused_file)
    with _refusals(refused_file, progress, is_new=not path.exists()) as refusals:
        _save_first(progress, path)
        quantities = Quantities(target.buffer.redis)
        job = Import(sink, limits, quantities, progress, path, refusals)
        try:
            _show(job, handle, parse)
        except (KeyboardInterrupt, BufferUnavailableError):
            line = job.progress.lines
            typer.echo(f"stopped after line {line}; the same command goes on there", err=True)
            raise
    if not job.progress.refused:
        refused_file.unlink(missing_ok=True)
    return job.progress


def _save_first(progress: Progress, path: Path) -> None:
    """Find out before anything is sent that the progress cannot be kept."""
    try:
        progress.save(path)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def _refusals(path: Path, progress: Progress, *, is_new: bool) -> Iterator[BinaryIO]:
    """Open the refusals file where the progress left it; never overwrite a stranger's file."""
    if is_new and path.exists() and path.stat().st_size:
        reason = f"{path} exists: move it away, or name another"
        raise InvalidInputError(FieldProblem("refused", reason))
    try:
        path.touch(mode=0o600)
        handle = path.open("r+b")
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    with handle:
        handle.truncate(min(progress.refused_bytes, handle.seek(0, SEEK_END)))
        handle.seek(0, SEEK_END)
        yield handle


def _show(job: Import, handle: BinaryIO, parse: Parse) -> None:
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
        job.waiting = lambda s: bar.update(task, description=f"no room; again in {s} s")
        for done in job.run(handle, parse):
            bar.update(
                task,
                description="importing",
                completed=done.offset,
                sent=done.sent,
                refused=done.refused,
            )


def _report(progress: Progress, costs: Costs, *, was_finished: bool, as_json: bool) -> None:
    refused_file = progress.refused_file if progress.refused else None
    if as_json:
        print_json(
            {
                "sent": progress.sent,
                "refused": progress.refused,
                "refused_file": refused_file,
                "was_finished": was_finished,
                "this_run": costs.record(),
            }
        )
        return
    before = "imported before: " if was_finished else ""
    where = f", see {refused_file}" if refused_file else ""
    typer.echo(f"{before}{progress.sent} sent, {progress.refused} refused{where}")
    if progress.too_old:
        days = "as many days as they are old"
        typer.echo(f"{progress.too_old} are too old: --max-age-days takes them, with {days}")
    if not was_finished:
        typer.echo("\n".join(costs.lines()))
