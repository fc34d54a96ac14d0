"""Real worker and beat under steady traffic: the delay of debits and alerts; memory over time."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import quantiles
from tempfile import mkdtemp
from time import monotonic, sleep, time

import psutil

from bed import Bed, Market
from metering.clock import from_wire, to_wire, utc_now
from metering.ids import Currency
from metering.low_credit.rules import set_rule
from metering.webhook.endpoints import NewEndpoint, create_endpoint
from worker.local.up import Stack
from worker.settings import environment

RATE_EVENTS = 5000  # per second
FLUSH_S = 0.1
ALERTED_WALLETS = 200
THRESHOLDS = 15
POLL_S = 0.02


@dataclass
class Receiver:
    """Takes webhooks and records their delay after the crossing, in seconds."""

    url: str = ""
    delays_s: list[float] = field(default_factory=list)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a webhook receiver on a free port."""
    alerts = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            alerts.delays_s.append(time() - from_wire(body["data"]["crossed_at"]).timestamp())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    alerts.url = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield alerts
    server.shutdown()
    server.server_close()


@contextmanager
def processes(servers: Bed) -> Iterator[Stack]:
    """Run the workers and beat on the bench's servers."""
    overrides = {
        "DATABASE_URL": servers.config.database_url.get_secret_value(),
        "REDIS_URL": servers.config.redis_url.get_secret_value(),
        "GULLAK_WEBHOOK_ALLOW_PRIVATE": "true",
        "GULLAK_HIGH_WATER_EVENTS": str(servers.config.high_water_events),
    }
    folder = Path(mkdtemp(prefix="gullak-bench-stack-"))
    with Stack(folder, variables=environment(), overrides=overrides) as stack:
        yield stack


def lags_s(servers: Bed, market: Market, seconds: int) -> tuple[list[float], list[float]]:
    """Send steady traffic; return accepted-to-debited and crossed-to-received times in seconds.

    An event's debit is when another connection first sees its committed batch, so both the commit
    and a polling period are in the figure.
    """
    with receiver() as alerts, processes(servers):
        with servers.sessions.transaction() as conn:
            create_endpoint(conn, market.business_id, NewEndpoint(url=alerts.url))
            for number, customer in enumerate(market.customers[:ALERTED_WALLETS]):
                # An event costs about 0.14 cents: wallets cross at different times of the run.
                threshold = -(1 + number % THRESHOLDS)
                set_rule(conn, market.business_id, Currency("USD"), threshold, customer_id=customer)
        first = int(servers.query("SELECT coalesce(max(batch_id), 0) FROM usage_batches")[0][0])
        seen: dict[int, float] = {}
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(servers, first, seen, stop))
        watcher.start()
        _traffic(market, seconds)
        while servers.buffer.backlog().events:
            sleep(POLL_S)
        sleep(3)  # the last alerts
        stop.set()
        watcher.join()
    rows = servers.query(
        f"SELECT batch_id, extract(epoch FROM event_at), count(*) FROM usage_events"
        f" WHERE batch_id > {first} GROUP BY 1, 2"
    )
    lags = [seen[batch] - float(at) for batch, at, events in rows for _ in range(events)]
    return lags, alerts.delays_s


def _watch(servers: Bed, first: int, seen: dict[int, float], stop: threading.Event) -> None:
    while not stop.is_set():
        low = max(first, max(seen, default=first) - 100)
        found = servers.query(f"SELECT batch_id FROM usage_batches WHERE batch_id > {low}")
        now = time()
        for (batch_id,) in found:
            seen.setdefault(int(batch_id), now)
        sleep(POLL_S)


def _traffic(market: Market, seconds: int) -> None:
    """Append flushes at an even pace; each event has the time of its acceptance."""
    per_flush = int(RATE_EVENTS * FLUSH_S)
    started = monotonic()
    for flush in range(int(seconds / FLUSH_S)):
        sleep(max(0.0, started + flush * FLUSH_S - monotonic()))
        now = to_wire(utc_now())
        events = [event._replace(event_at=now) for event in market.events(per_flush)]
        market.bed.buffer.append(market.business_id, events)


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


@dataclass
class Growth:
    """One round: events so far, drain rate of the round, largest worker process in MiB."""

    events: int
    rate: float
    memory_mib: float


def rounds(servers: Bed, market: Market, events: int, per_round: int) -> list[Growth]:
    """Fill and drain round after round with a real worker; record its rate and its memory."""
    found = []
    with processes(servers) as stack:
        for done in range(per_round, events + 1, per_round):
            market.fill(per_round)
            started = monotonic()
            left = servers.buffer.backlog().events
            before = left
            while left:
                sleep(POLL_S)
                left = servers.buffer.backlog().events
            rate = before / (monotonic() - started)
            found.append(Growth(done, rate, _memory_mib(stack.pids["worker"])))
    return found


def _memory_mib(pid: int) -> float:
    parent = psutil.Process(pid)
    family = [parent, *parent.children(recursive=True)]
    return max(process.memory_info().rss for process in family) / 2**20
