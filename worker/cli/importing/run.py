"""The import itself: lines to requests, refusals to their file, progress after each request."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import sleep
from typing import BinaryIO, Final

import orjson

from metering.accept.event import AcceptLimits
from metering.accept.record import UsageSink, record_usage
from metering.accept.summed import Quantities
from metering.accept.validate import TOO_OLD, check_event
from metering.errors import BufferFullError, BufferUnavailableError, FieldProblem, InvalidInputError
from worker.cli.importing.progress import Progress
from worker.cli.importing.usage_file import Fields, Line, Parse, read_lines

# A Redis that restarts is back within this many seconds; after that the import stops.
UNAVAILABLE_TRIES_MAX: Final = 20
# Bounds memory if lines are long; 1,000 usual events are a twentieth of it.
PAGE_BYTES_MAX: Final = 8 << 20
SHOWN_CHARS_MAX: Final = 1000  # of a line that is too long

# An event, the reasons to refuse the line, or None if it is blank.
Parsed = Fields | tuple[FieldProblem, ...] | None


@dataclass(slots=True)
class Page:
    """Lines up to the next request: their events, and those already refused."""

    start: int
    end: int = 0
    lines: int = 0
    events: list[tuple[Line, Fields]] = field(default_factory=list)
    event_ids: set[object] = field(default_factory=set)
    refused: list[tuple[Line, Sequence[FieldProblem]]] = field(default_factory=list)

    def has_room(self, parsed: Parsed, events_max: int) -> bool:
        """Whether one more line fits: a request may not hold an event id twice.

        The ledger judges a repeated id: it knows a duplicate from a conflict.
        """
        if self.end - self.start >= PAGE_BYTES_MAX or len(self.refused) >= events_max:
            return False
        if not isinstance(parsed, dict):
            return True
        return len(self.events) < events_max and _id_of(parsed) not in self.event_ids

    def add(self, line: Line, parsed: Parsed) -> None:
        """Add a line: an event, a refusal, or nothing if it is blank."""
        self.end, self.lines = line.end, line.number
        if isinstance(parsed, dict):
            self.events.append((line, parsed))
            self.event_ids.add(_id_of(parsed))
        elif parsed is not None:
            self.refused.append((line, parsed))


def _pages(lines: Iterator[Line], parse: Parse, events_max: int, start: int) -> Iterator[Page]:
    """Gather the lines that follow offset `start` into pages of up to `events_max` events."""
    page = Page(start)
    for line in lines:
        parsed = _parsed(line, parse)
        if not page.has_room(parsed, events_max):
            yield page
            page = Page(page.end)
        page.add(line, parsed)
    if page.end:
        yield page


def _parsed(line: Line, parse: Parse) -> Parsed:
    if not line.content.strip():
        return None
    try:
        return parse(line)
    except InvalidInputError as error:
        return error.problems


def _id_of(fields: Fields) -> object:
    """Return an event id that a set can hold; one that is no text is refused later."""
    event_id = fields["event_id"]
    return event_id if isinstance(event_id, str) else repr(event_id)


@dataclass(slots=True)
class Import:
    """An import under way. `on_wait` gets the seconds for which the buffer has no room."""

    buffer: UsageSink
    limits: AcceptLimits
    quantities: Quantities
    progress: Progress
    progress_path: Path
    on_wait: Callable[[int], None] = lambda _seconds: None

    def run(self, file: BinaryIO, parse: Parse, refusals: BinaryIO) -> Iterator[Progress]:
        """Send the rest of the file; yield the progress after each request.

        Refusals are written before the progress: after a kill in between they are written again.

        Raises:
            BufferUnavailableError: Redis stays away; the acknowledged part is saved.

        """
        file.seek(self.progress.offset)
        lines = read_lines(file, number=self.progress.lines)
        for page in _pages(lines, parse, self.limits.request_events_max, self.progress.offset):
            self._send(page)
            refused = sorted(page.refused, key=lambda refusal: refusal[0].number)
            refusals.writelines(_refusal(line, problems) for line, problems in refused)
            refusals.flush()
            before = self.progress
            self.progress = replace(
                before,
                offset=page.end,
                lines=page.lines,
                sent=before.sent + len(page.events),
                refused=before.refused + len(page.refused),
                refused_bytes=refusals.tell(),
                too_old=before.too_old + sum(map(_is_too_old, page.refused)),
            )
            self.progress.save(self.progress_path)
            yield self.progress

    def _send(self, page: Page) -> None:
        """Send the events of a page; those that are refused move to its refusals."""
        while page.events:
            try:
                self._record([fields for _, fields in page.events])
            except InvalidInputError:
                self._sort_out(page)
            else:
                return

    def _sort_out(self, page: Page) -> None:
        """Find the bad events one by one: only a page that was refused pays for that."""
        summed = self.quantities.summed(self.progress.business_id)
        good = []
        for line, fields in page.events:
            try:
                check_event(fields, self.limits, summed)
            except InvalidInputError as error:
                page.refused.append((line, error.problems))
            else:
                good.append((line, fields))
        page.events[:] = good

    def _record(self, events: Sequence[Fields]) -> None:
        """Send one request, again while the buffer is full, and for a while if Redis is away."""
        business_id, tries = self.progress.business_id, 0
        while True:
            try:
                record_usage(
                    self.buffer, business_id, events, limits=self.limits, quantities=self.quantities
                )
            except (BufferFullError, BufferUnavailableError) as error:
                tries += isinstance(error, BufferUnavailableError)
                if tries >= UNAVAILABLE_TRIES_MAX:
                    raise
                self.on_wait(error.retry_after_s)
                sleep(error.retry_after_s)
            else:
                return


def _is_too_old(refused: tuple[Line, Sequence[FieldProblem]]) -> bool:
    return any(problem.reason.startswith(TOO_OLD) for problem in refused[1])


def _refusal(line: Line, problems: Sequence[FieldProblem]) -> bytes:
    first, *others = problems
    text = line.content.decode(errors="backslashreplace")
    record = {
        "line": line.number,
        "field": first.field,
        "reason": "; ".join((first.reason, *(f"{p.field}: {p.reason}" for p in others))),
        "input": text[:SHOWN_CHARS_MAX] if line.is_too_long else text,
    }
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
