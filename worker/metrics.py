"""What Prometheus sees: the metrics, the gauges of `status`, and the sum over all processes.

Each process leaves its counters in files of one folder, named by its id. The files of processes
that have ended are folded into one per kind, because a worker replaces its children for ever.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    mmap_dict,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from metering.errors import RefusedEventError
from worker.status import Buffered, Waiting

TASK_RUNS = Counter("gullak_task_runs_total", "Runs of a task by outcome.", ["task", "outcome"])
TASK_SECONDS = Histogram("gullak_task_seconds", "How long a run of a task took.", ["task"])
EVENTS = Counter("gullak_events_total", "Events by where they ended.", ["outcome"])
EVENTS_REFUSED = Counter(
    "gullak_events_refused_total", "Events that became dead letters, by reason.", ["reason"]
)
BACKLOG_EVENTS = Gauge(
    "gullak_backlog_events",
    "Events in the buffer at the last sweep.",
    multiprocess_mode="mostrecent",
)
SHARD_WAITS_FOR_UPGRADE = Gauge(
    "gullak_shard_waits_for_upgrade",
    "1 while a shard begins with a chunk that only a newer release can read.",
    ["shard"],
    multiprocess_mode="mostrecent",
)
OLDEST_EVENT_SECONDS = Gauge(
    "gullak_oldest_buffered_event_age_seconds",
    "How long the oldest buffered event had waited at the last measurement; 0: none waited.",
    multiprocess_mode="mostrecent",
)
LAG_SECONDS = Histogram(
    "gullak_drain_lag_seconds",
    "From the buffering of the last chunk of a drain to its debit.",
    buckets=(0.1, 0.25, 0.5, 1, 2, 5, 15, 60, 300, 1800),
)
SERVER_FAULTS = Counter(
    "gullak_server_faults_total",
    "Errors that are the server's fault; what it was asked for waits.",
    ["sqlstate_class", "stage"],
)
LEDGER_FAULTS = Gauge(
    "gullak_ledger_faults",
    "Broken invariants that the last complete scheduled check found and nobody has accepted.",
    multiprocess_mode="mostrecent",
)
LEDGER_VERIFIED = Gauge(
    "gullak_ledger_verified_timestamp_seconds",
    "When the last complete scheduled check ended, Unix time; 0: none has.",
    multiprocess_mode="mostrecent",
)
HTTP_REQUESTS = Counter(
    "gullak_http_requests_total", "Answered requests.", ["method", "route", "status"]
)
HTTP_SECONDS = Histogram("gullak_http_request_seconds", "How long a request took.", ["route"])
ACCEPTED_EVENTS = Counter("gullak_accepted_events_total", "Events taken over HTTP.")
PROVIDER_WEBHOOKS = Counter(
    "gullak_provider_webhooks_total",
    "Webhooks of payment providers: stored, repeated, or refused for their signature.",
    ["provider", "outcome"],
)
WEBHOOK_ATTEMPTS = Counter(
    "gullak_webhook_attempts_total",
    "Attempts to deliver a webhook: delivered, failed and tried again, or dead.",
    ["outcome"],
)
# `ledger.measure` finds these once a minute: it looks at every wallet.
MEASURED = Gauge(
    "gullak_measured_timestamp_seconds",
    "When the last measurement ended, Unix time: what it finds is as old as this.",
    multiprocess_mode="mostrecent",
)
REFUSED_EVENTS = Gauge(
    "gullak_refused_events",
    "Events that wait as dead letters, by reason.",
    ["reason"],
    multiprocess_mode="mostrecent",
)
WEBHOOK_DELIVERIES = Gauge(
    "gullak_webhook_deliveries",
    "Webhooks that have not arrived: pending, failing (pending, and tried in vain), dead.",
    ["state"],
    multiprocess_mode="mostrecent",
)
PARKED = Gauge(
    "gullak_parked",
    "What waits for a person: payments, charges, provider_events.",
    ["what"],
    multiprocess_mode="mostrecent",
)
WALLETS_BELOW_ZERO = Gauge(
    "gullak_wallets_below_zero",
    "Wallets with a balance below zero.",
    ["currency"],
    multiprocess_mode="mostrecent",
)


def publish(buffered: Buffered, waiting: Waiting, currencies: Iterable[str]) -> None:
    """Set the gauges of what waits.

    They outlive their process, so each label that there may be is set each time: a label that is
    left out would keep its last value for ever.
    """
    OLDEST_EVENT_SECONDS.set(buffered.oldest_age_s or 0)
    for reason in {*refusal_reasons(), *waiting.refused}:
        REFUSED_EVENTS.labels(reason).set(waiting.refused.get(reason, 0))
    for state, deliveries in asdict(waiting.webhooks).items():
        WEBHOOK_DELIVERIES.labels(state).set(deliveries)
    for what, parked in asdict(waiting.parked).items():
        PARKED.labels(what).set(parked)
    for currency in {*currencies, *waiting.below_zero}:
        owed = waiting.below_zero.get(currency)
        WALLETS_BELOW_ZERO.labels(currency).set(owed.wallets if owed else 0)
    MEASURED.set(time.time())


def refusal_reasons(kind: type[RefusedEventError] = RefusedEventError) -> set[str]:
    """Return the reasons for which an event can be refused."""
    kinds = kind.__subclasses__()
    return {sub.reason for sub in kinds}.union(*(refusal_reasons(sub) for sub in kinds))


# --- the sum over all processes -------------------------------------------------------------------

# In place of the ids of all processes that have ended: no process of ours has this id.
ENDED: Final = 0

Sample = tuple[float, float]  # value, time of writing

_JOINED: Final[dict[str, Callable[[Sample, Sample], Sample]]] = {
    "counter": lambda before, new: (before[0] + new[0], 0),
    "histogram": lambda before, new: (before[0] + new[0], 0),
    "gauge_mostrecent": lambda before, new: max(before, new, key=lambda sample: sample[1]),
}
_MmapedDict: Any = mmap_dict.MmapedDict  # it has no types
_folding = Lock()


def metrics_text(folder: Path) -> bytes:
    """Return the sum over all processes, past and present, in Prometheus text format."""
    registry = CollectorRegistry()
    with _folding:
        fold_ended(folder)
        MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def fold_ended(folder: Path) -> None:
    """Add the counters of processes that have ended to those of `ENDED`; drop their live gauges."""
    for path in folder.glob("*_*.db"):
        kind, _, pid = path.stem.rpartition("_")
        if not pid.isdigit() or int(pid) == ENDED or _runs(int(pid)):
            continue
        if kind in _JOINED:
            _fold(path, folder / f"{kind}_{ENDED}.db", _JOINED[kind])
            path.unlink()
        mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]


def _fold(source: Path, target: Path, join: Callable[[Sample, Sample], Sample]) -> None:
    total = _MmapedDict(str(target))
    try:
        for key, value, written_at, _ in _MmapedDict.read_all_values_from_file(str(source)):
            total.write_value(key, *join(total.read_value(key), (value, written_at)))
    finally:
        total.close()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
