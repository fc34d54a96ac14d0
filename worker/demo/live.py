"""What the demo shows: a live table on a terminal, a line every few seconds elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metering.ids import CustomerId
from worker.demo.receiver import Receiver
from worker.demo.reconcile import Line
from worker.demo.scene import Scene
from worker.demo.watch import Sample

LINE_EVERY_S: Final = 2.0
NEWS_SHOWN: Final = 6
RATE_OVER_S: Final = 2.0
SHOWN_CUSTOMERS: Final = (0, 1, 2, 3, 4, 5, 8, 9)  # of each kind of purse and both currencies


class Display:
    """Shows samples and news; `update` is called several times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_at = time.monotonic()
        self._news: deque[str] = deque(maxlen=NEWS_SHOWN)
        self._recent: deque[tuple[float, int]] = deque()
        self._next_line_at = 0.0
        self._live: Live | None = None
        self._scene: Scene | None = None
        self._receiver: Receiver | None = None
        self._sent: Callable[[], int] = lambda: 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def introduce(self, scene: Scene, receiver: Receiver, sent: Callable[[], int]) -> None:
        """Say what there is to show from now on."""
        self._scene, self._receiver, self._sent = scene, receiver, sent

    @staticmethod
    def watched(scene: Scene) -> Sequence[CustomerId]:
        """Return the customers whose balances are shown."""
        return [scene.customers[number] for number in SHOWN_CUSTOMERS]

    def tell(self, news: str) -> None:
        """Show a piece of news."""
        text = f"{time.monotonic() - self._started_at:5.1f} s  {news}"
        self._news.append(text)
        if self._live is None:
            self._console.print(text, highlight=False)
        else:
            self._live.update(self._screen(None), refresh=True)

    def update(self, sample: Sample) -> None:
        """Show a sample."""
        self._recent.append((sample.at_s, sample.counts.settled))
        while sample.at_s - self._recent[0][0] > RATE_OVER_S:
            self._recent.popleft()
        if self._live is not None:
            self._live.update(self._screen(sample), refresh=True)
        elif time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + LINE_EVERY_S
            self._console.print(self._line(sample), highlight=False)

    def _per_second(self) -> float:
        (first_at, first), (last_at, last) = self._recent[0], self._recent[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0

    def _alerts(self) -> int:
        inbox = self._receiver.inbox if self._receiver else None
        return inbox.received().count if inbox else 0

    def _line(self, sample: Sample) -> str:
        counts = sample.counts
        away = f"  away: {', '.join(sample.away)}" if sample.away else ""
        return (
            f"{time.monotonic() - self._started_at:5.1f} s  sent {self._sent():,}"
            f"  accepted {counts.accepted:,}  buffered {counts.buffered:,}"
            f"  debited {counts.posted:,} ({self._per_second():,.0f}/s)"
            f"  lag {sample.lag_s:.2f} s  alerts {self._alerts()}{away}"
        )

    def _screen(self, sample: Sample | None) -> RenderableType:
        parts: list[RenderableType] = []
        if sample is not None:
            parts += [self._figures(sample), self._balances(sample)]
        return Group(*parts, Text("\n".join(self._news), style="dim"))

    def _figures(self, sample: Sample) -> Table:
        table = Table(title="gullak demo", title_justify="left", expand=False)
        values = {
            "sent": f"{self._sent():,}",
            "accepted": f"{sample.counts.accepted:,}",
            "buffered": f"{sample.counts.buffered:,}",
            "debited": f"{sample.counts.posted:,}",
            "per second": f"{self._per_second():,.0f}",
            "lag": f"{sample.lag_s:.2f} s",
            "verified alerts": str(self._alerts()),
            "away": ", ".join(sample.away) or "-",
        }
        for name in values:
            table.add_column(name, justify="right")
        table.add_row(*values.values())
        return table

    def _balances(self, sample: Sample) -> Table:
        table = Table(title="balances", title_justify="left", box=None)
        if self._scene is None:
            return table
        row = []
        for number in SHOWN_CUSTOMERS:
            currency = Scene.currency_of(number)
            table.add_column(f"customer {number} ({currency})", justify="right")
            balance = sample.balances.get(self._scene.customers[number], 0)
            style = "red" if balance < 0 else ""
            row.append(Text(f"{balance / 100:,.2f}", style=style))
        table.add_row(*row)
        return table


def show_lines(console: Console, lines: Sequence[Line], facts: Sequence[tuple[str, str]]) -> None:
    """Print the account and the figures of the run."""
    table = Table(title="reconciliation", title_justify="left")
    for name in ("", "expected", "found", "holds"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for line in lines:
        mark = Text("yes", "green") if line.holds else Text("NO", "bold red")
        table.add_row(line.name, line.expected, line.actual, mark)
    console.print(table)
    for name, value in facts:
        console.print(f"{name}: {value}", highlight=False)
    broken = sum(not line.holds for line in lines)
    verdict = "every line holds" if not broken else f"{broken} lines do NOT hold"
    console.print(Text(verdict, "bold red" if broken else "bold green"))
