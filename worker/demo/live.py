"""What the demo shows: a live table on a terminal, a line every few seconds elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metering.ids import CustomerId
from worker.demo.scene import CURRENCY_OF
from worker.demo.watch import Sample

LINE_EVERY_S: Final = 2.0
NEWS_SHOWN: Final = 6
RATE_OVER_S: Final = 2.0
SHOWN_CUSTOMERS: Final = (0, 1, 2, 3, 4, 5, 8, 9)  # of each kind of purse and both currencies


class Display:
    """Shows news and samples. `sent` and `alerts` count what the stores do not know."""

    def __init__(self, console: Console) -> None:
        self.sent: Callable[[], int] = int
        self.alerts: Callable[[], int] = int
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._began_at = time.monotonic()
        self._next_line_at = 0.0
        self._news: deque[str] = deque(maxlen=NEWS_SHOWN)
        self._recent: deque[tuple[float, int]] = deque([(0.0, 0)])
        self._tables: Sequence[Table] = ()

    def __enter__(self) -> Self:
        (self._live or nullcontext()).__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        (self._live or nullcontext()).__exit__(kind, error, trace)

    def tell(self, news: str) -> None:
        """Show a piece of news."""
        self._news.append(f"{self.time_s():5.1f} s  {news}")
        if self._live is None:
            self._console.print(self._news[-1], highlight=False)
        self._refresh()

    def update(self, sample: Sample, customers: Sequence[CustomerId]) -> None:
        """Show a sample, and the balances of some customers; called several times a second."""
        figures = self._figures(sample)
        self._tables = (_row("gullak demo", figures), _balances(sample, customers))
        self._refresh()
        if self._live is None and time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + LINE_EVERY_S
            text = "  ".join(f"{name} {value}" for name, value in figures.items() if value)
            self._console.print(f"{self.time_s():5.1f} s  {text}", highlight=False)

    def time_s(self) -> float:
        """Return how long the demo has run."""
        return time.monotonic() - self._began_at

    def _refresh(self) -> None:
        if self._live is not None:
            news = Text("\n".join(self._news), style="dim")
            self._live.update(Group(*self._tables, news), refresh=True)

    def _figures(self, sample: Sample) -> dict[str, str]:
        counts = sample.counts
        return {
            "sent": f"{self.sent():,}",
            "accepted": f"{counts.accepted:,}",
            "buffered": f"{counts.buffered:,}",
            "debited": f"{counts.posted:,}",
            "per second": f"{self._per_second(counts.ended):,.0f}",
            "lag": f"{sample.lag_s:.2f} s",
            "alerts": f"{self.alerts():,}",
            "away": ", ".join(sample.away),
        }

    def _per_second(self, ended: int) -> float:
        self._recent.append((self.time_s(), ended))
        while self._recent[-1][0] - self._recent[0][0] > RATE_OVER_S:
            self._recent.popleft()
        (first_s, first), (last_s, last) = self._recent[0], self._recent[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


def _balances(sample: Sample, customers: Sequence[CustomerId]) -> Table:
    shown = [number for number in SHOWN_CUSTOMERS if number < len(customers)]
    return _row(
        "balances",
        {
            f"customer {number} ({CURRENCY_OF[number]})": f"{balance / 100:,.2f}"
            for number in shown
            for balance in [sample.balances.get(customers[number], 0)]
        },
    )


def _row(title: str, values: dict[str, str]) -> Table:
    """Return a table of one row, with what is below zero in red."""
    table = Table(title=title, title_justify="left")
    for name in values:
        table.add_column(name, justify="right")
    table.add_row(*(Text(text, "red" if text.startswith("-") else "") for text in values.values()))
    return table
