"""`make bench`: ratios from one run against their budgets, as a table and as JSON."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from bed import Bed, Market, bed
from drains import bare_copy_rate, drain_rate
from ingest import balance_p99_s, ingest_rates, single_event_p99_s
from live import lags_s, p99, rounds
from tasks_per_event import task_per_event_rate

EVENTS = 400_000
ROUNDS = 3
NAIVE_EVENTS = 4000
INGESTED_EVENTS = 100_000
REQUESTS = 2000
WALLETS = 1_000_000
LIVE_S = 30
SOAK_EVENTS = 5_000_000
SOAK_ROUND = 500_000


@dataclass(frozen=True)
class Budget:
    """One line of the result: `value` against `bar`; `better` is the direction."""

    name: str
    value: float
    bar: float
    better: str  # "above" or "below"
    note: str = ""

    @property
    def held(self) -> bool:
        return self.value >= self.bar if self.better == "above" else self.value <= self.bar


def drain_budgets(servers: Bed) -> list[Budget]:
    """Drain against bare COPY and against a task per event; the medians of interleaved runs.

    The speed of a shared machine drifts, so each run of a drain is compared with the copies right
    before and after it.
    """
    small, large = Market.open(servers, 1000), Market.open(servers, 20_000)
    drain_rate(servers, small, EVENTS // 10)  # caches, prepared plans, files of the tables
    drain_rate(servers, large, EVENTS // 5)
    cases = {
        "1,000 wallets": (small, 0.0, 0.5),
        "one hot wallet": (small, 1.0, 0.5),
        "20,000 wallets": (large, 0.0, 0.35),
    }
    rates: dict[str, list[float]] = {name: [] for name in cases}
    ratios: dict[str, list[float]] = {name: [] for name in cases}
    before = bare_copy_rate(servers, small, EVENTS)
    bare = [before]
    for _ in range(ROUNDS):
        for name, (market, hot_share, _bar) in cases.items():
            rates[name].append(drain_rate(servers, market, EVENTS, hot_share))
            after = bare_copy_rate(servers, small, EVENTS)
            ratios[name].append(rates[name][-1] / ((before + after) / 2))
            bare.append(after)
            before = after
    naive = task_per_event_rate(servers, small, NAIVE_EVENTS)
    return [
        *(
            Budget(
                f"drain / bare COPY, {name}", median(ratios[name]), bar, "above",
                f"{median(rates[name]):,.0f} of {median(bare):,.0f} rows/s",
            )
            for name, (_market, _hot, bar) in cases.items()
        ),
        Budget(
            "drain / one Celery task per event", median(rates["1,000 wallets"]) / naive, 60,
            "above", f"{naive:,.0f} tasks/s",
        ),
    ]  # fmt: skip


def edge_budgets(servers: Bed) -> list[Budget]:
    """Ingestion over HTTP against bare XADD, and the latency of single requests."""
    market = Market.open(servers, 1000)
    budgets = []
    for per_request, count in ((1000, INGESTED_EVENTS), (100, INGESTED_EVENTS // 5)):
        runs = [ingest_rates(servers, market, per_request, count) for _ in range(ROUNDS)]
        budgets.append(
            Budget(
                f"ingest over HTTP per core / bare XADD, {per_request:,} events per request",
                median(run.over_http / run.bare for run in runs), 0.3, "above",
                f"{median(run.over_http for run in runs):,.0f} of"
                f" {median(run.bare for run in runs):,.0f} events/s (pipelined XADD:"
                f" {median(run.pipelined for run in runs):,.0f})",
            )
        )  # fmt: skip
    return [
        *budgets,
        Budget("single-event request, p99, ms", 1e3 * single_event_p99_s(servers, market, REQUESTS),
               20, "below", f"{REQUESTS:,} requests"),
        Budget(f"balance read at {WALLETS:,} wallets, p99, ms",
               1e3 * balance_p99_s(servers, market, WALLETS, REQUESTS), 20, "below",
               f"{REQUESTS:,} requests"),
    ]  # fmt: skip


def live_budgets(servers: Bed, seconds: int) -> list[Budget]:
    """Delays with a real worker and beat."""
    lags, alerts = lags_s(servers, Market.open(servers, 1000), seconds)
    return [
        Budget("accepted to debited, p99, s, at 5,000 events/s", p99(lags), 2, "below",
               f"{len(lags):,} events"),
        Budget("debited to webhook received, p99, s", p99(alerts), 2, "below",
               f"{len(alerts)} alerts"),
    ]  # fmt: skip


def soak_budgets(servers: Bed, events: int) -> list[Budget]:
    """Memory and cost per event while the tables grow."""
    found = rounds(servers, Market.open(servers, 1000), events, SOAK_ROUND)
    first, last = found[1], found[-1]
    return [
        Budget(
            f"worker memory over {events:,} events, MiB", max(r.memory_mib for r in found), 250,
            "below", f"{first.memory_mib:.0f} after {first.events:,}, {last.memory_mib:.0f} last",
        ),
        Budget(
            f"cost per event, {first.events:,} to {last.events:,} events", first.rate / last.rate,
            1.3, "below", f"{first.rate:,.0f} to {last.rate:,.0f} events/s",
        ),
    ]  # fmt: skip


def show(budgets: list[Budget]) -> None:
    table = Table(title="Budgets")
    for column in ("what", "measured", "bar", "", "of it"):
        table.add_column(column)
    for budget in budgets:
        sign = "≥" if budget.better == "above" else "≤"
        verdict = "[green]held[/]" if budget.held else "[red]missed[/]"
        table.add_row(
            budget.name, f"{budget.value:.2f}", f"{sign} {budget.bar:g}", verdict, budget.note
        )
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    parser.add_argument("--only", choices=("drain", "edge", "live", "soak"))
    parser.add_argument("--soak-events", type=int, default=SOAK_EVENTS)
    arguments = parser.parse_args()
    parts: dict[str, Callable[[Bed], list[Budget]]] = {
        "drain": drain_budgets,
        "edge": edge_budgets,
        "live": lambda servers: live_budgets(servers, LIVE_S),
        "soak": lambda servers: soak_budgets(servers, arguments.soak_events),
    }
    budgets = []
    for name, part in parts.items():
        if arguments.only in (None, name):
            with bed() as servers:
                budgets += part(servers)
    show(budgets)
    rows = [{**asdict(budget), "held": budget.held} for budget in budgets]
    arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(budget.held for budget in budgets) else 1


if __name__ == "__main__":
    raise SystemExit(main())
