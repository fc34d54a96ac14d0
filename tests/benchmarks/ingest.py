"""The API over real HTTP: cost of ingestion against bare XADD, and latency of one request."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from statistics import quantiles
from time import monotonic, perf_counter, sleep
from typing import Any

import orjson
import psutil

from bed import Bed, Market
from metering.access.keys import PERMISSIONS, create_key
from metering.buffer.chunk import BufferedEvent, encode_chunk
from metering.buffer.keys import Shard, stream_key
from metering.buffer.shard import shard_of
from worker.health import answers_ready
from worker.local.port import HOST, free_port

START_TIMEOUT_S = 30
WARM_UP_REQUESTS = 20
BLOCK_REQUESTS = 10

Chunk = tuple[Shard, dict[Any, Any]]


@dataclass
class Edge:
    """One running API process, and a client of the market's business."""

    client: HTTPConnection
    headers: dict[str, str]
    process: psutil.Process

    def request(self, method: str, path: str, body: bytes | None = None) -> None:
        self.client.request(method, path, body, self.headers)
        answer = self.client.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {text.decode()}")

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def latencies_s(self, requests: Sequence[tuple[str, str, bytes | None]]) -> list[float]:
        """Send requests one after another; return how long each took."""
        took = []
        for request in requests:
            began = perf_counter()
            self.request(*request)
            took.append(perf_counter() - began)
        return took[WARM_UP_REQUESTS:]


@contextmanager
def edge(servers: Bed, market: Market) -> Iterator[Edge]:
    """Run the API, one process, on the bench's servers."""
    with servers.sessions.transaction() as conn:
        key = create_key(conn, market.business_id, "bench", PERMISSIONS).key
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "api.server", "--host", HOST, "--port", str(port)],
        env={
            **os.environ,
            "DATABASE_URL": servers.config.database_url.get_secret_value(),
            "REDIS_URL": servers.config.redis_url.get_secret_value(),
            "GULLAK_HIGH_WATER_EVENTS": str(servers.config.high_water_events),
            "GULLAK_API_RATE_LIMIT": "none",
        },
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = monotonic() + START_TIMEOUT_S
        while not answers_ready(f"http://{HOST}:{port}"):
            if monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("the API did not start")
            sleep(0.1)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        yield Edge(HTTPConnection(HOST, port), headers, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


def body(events: Sequence[BufferedEvent]) -> bytes:
    """Return the request that a producer sends for these events."""
    return orjson.dumps(
        {
            "events": [
                {
                    "event_id": event.event_id,
                    "customer_id": event.customer_id,
                    "event_name": event.event_name,
                    "timestamp": event.event_at,
                    "metadata": event.metadata,
                }
                for event in events
            ]
        }
    )


@dataclass(frozen=True)
class Ingested:
    """Events per second: per core of the API; of bare XADD one by one, and pipelined."""

    over_http: float
    bare: float
    pipelined: float


def ingest_rates(servers: Bed, market: Market, per_request: int, count: int) -> Ingested:
    """Ingest over HTTP, and add the same chunks with bare XADD, one by one and pipelined.

    They take turns, a block of requests each, because the speed of a shared machine drifts fast.
    """
    events = market.events(count)
    requests = [events[at : at + per_request] for at in range(0, count, per_request)]
    bare_s = pipelined_s = 0.0
    with edge(servers, market) as api:
        for warm in requests[:WARM_UP_REQUESTS]:
            api.request("POST", "/events/ingest", body(warm))
        before_s = api.cpu_s()
        for at in range(0, len(requests), BLOCK_REQUESTS):
            block = requests[at : at + BLOCK_REQUESTS]
            for one in [body(events) for events in block]:
                api.request("POST", "/events/ingest", one)
            chunked = [list(_chunks(servers, market, events)) for events in block]
            bare_s += _add_s(servers, chunked, is_pipelined=False)
            pipelined_s += _add_s(servers, chunked, is_pipelined=True)
        over_http_s = api.cpu_s() - before_s
    servers.buffer.redis.flushdb()
    return Ingested(count / over_http_s, count / bare_s, count / pipelined_s)


def _add_s(servers: Bed, chunked: Sequence[Sequence[Chunk]], *, is_pipelined: bool) -> float:
    """Add the chunks of each request with XADD, and nothing else; return how long it took."""
    began = perf_counter()
    for chunks in chunked:
        if not is_pipelined:
            for shard, fields in chunks:
                servers.buffer.redis.xadd(stream_key(shard), fields)
            continue
        pipe = servers.buffer.redis.pipeline(transaction=False)
        for shard, fields in chunks:
            pipe.xadd(stream_key(shard), fields)
        pipe.execute()
    return perf_counter() - began


def _chunks(servers: Bed, market: Market, events: list[BufferedEvent]) -> Iterator[Chunk]:
    by_shard: dict[Shard, list[BufferedEvent]] = {}
    for event in events:
        shard = shard_of(market.business_id, event.customer_id, len(servers.buffer.shards))
        by_shard.setdefault(shard, []).append(event)
    for shard, own in by_shard.items():
        payload = encode_chunk(market.business_id, own)
        yield shard, {"b": market.business_id, "n": len(own), "t": len(own), "e": payload}


def single_event_p99_s(servers: Bed, market: Market, count: int) -> float:
    """Return the p99 of requests with one event each."""
    events = market.events(count)
    with edge(servers, market) as api:
        took = api.latencies_s([("POST", "/events/ingest", body([event])) for event in events])
    servers.buffer.redis.flushdb()
    return quantiles(took, n=100)[98]


def balance_p99_s(servers: Bed, market: Market, wallets: int, count: int) -> float:
    """Return the p99 of reading a customer's balances among this many wallets."""
    customers = add_customers(servers, market, wallets // 2, count)
    with edge(servers, market) as api:
        took = api.latencies_s(
            [("GET", f"/customers/{customer}/wallets", None) for customer in customers]
        )
    return quantiles(took, n=100)[98]


def add_customers(servers: Bed, market: Market, customers: int, sample: int) -> list[str]:
    """Add customers with a wallet per currency; return some of them, spread evenly."""
    business = market.business_id
    made = "SELECT 'cus_' || lpad(to_hex(n), 26, '0') AS id FROM generate_series(1, {}) n"
    many = made.format(customers)
    with servers.sessions.transaction() as conn:
        conn.exec_driver_sql("SET LOCAL statement_timeout = 0")
        conn.exec_driver_sql(
            "INSERT INTO customers (customer_id, business_id, email, name)"
            f" SELECT id, '{business}', id || '@example.com', id FROM ({many}) made"
        )
        conn.exec_driver_sql(
            "INSERT INTO wallets (wallet_id, business_id, customer_id, currency)"
            f" SELECT 'wal_' || currency || id, '{business}', id, currency FROM ({many}) made"
            " CROSS JOIN unnest(ARRAY['USD', 'INR']) currency"
        )
    with servers.sessions.transaction() as conn:
        conn.exec_driver_sql("ANALYZE customers, wallets")
    return [f"cus_{1 + n * (customers // sample):026x}" for n in range(sample)]
