"""Postgres fails for a while under traffic: nothing is refused, lost or charged twice.

`--fault-seconds` sets the duration; the test prints its measurements (`-s` shows them).
"""

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Self

import httpx
import psycopg
import pytest

from metering.buffer.chunk import BufferedEvent
from support.edge import Api
from support.tiers import mostly_slow, of_tier
from support.traffic import Producer, Workload, wait_for
from worker.context import open_buffer
from worker.local.up import Stack
from worker.session import Sessions, make_engine
from worker.settings import settings_from

SMALL_DISK = "16m"
PERIOD_S = 0.05


class SharedWorkload(Workload):
    """A workload that several producers send."""

    _lock = Lock()

    def events(self, number: int) -> list[BufferedEvent]:
        with self._lock:
            return super().events(number)


@dataclass
class Clients:
    """Clients that call the API all the time: one sends events, one writes, one reads."""

    workload: Workload
    api: Api
    name: str
    ingested: Counter[int] = field(default_factory=Counter)
    written: Counter[int] = field(default_factory=Counter)
    read: Counter[int] = field(default_factory=Counter)
    entries: int = 0
    slowest_s: float = 0.0
    _stop: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        works = (self._ingest, self._write, self._read)
        self._threads = [Thread(target=self._repeat, args=(work,)) for work in works]
        self._keys = count()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, work: Callable[[httpx.Client], None]) -> None:
        with self.api.client() as client:
            while not self._stop.wait(PERIOD_S):
                work(client)

    def _ingest(self, client: httpx.Client) -> None:
        made = self.workload.events(10)
        unique = {each.event_id: each for each in made}  # a repeated id within a request is refused
        events = [
            {
                "event_id": each.event_id,
                "customer_id": each.customer_id,
                "event_name": each.event_name,
                "timestamp": each.event_at,
                "metadata": each.metadata,
            }
            for each in unique.values()
        ]
        started = time.monotonic()
        answer = client.post("/events/ingest", json={"events": events})
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        self.ingested[answer.status_code] += 1

    def _write(self, client: httpx.Client) -> None:
        """Write an entry, and repeat the request as long as the answer asks for it."""
        customer = self.workload.shop.customers[0]
        entry = {"amount": 1, "currency": "INR", "entry_type": "credit"}
        entry["idempotency_key"] = f"{self.name}-{next(self._keys)}"
        while True:
            path = f"/customers/{customer}/wallets/ledger-entries"
            answer = client.post(path, json=entry)
            self.written[answer.status_code] += 1
            if answer.status_code != 503 or "Retry-After" not in answer.headers:
                self.entries += answer.is_success
                return
            time.sleep(PERIOD_S)

    def _read(self, client: httpx.Client) -> None:
        self.read[client.get("/customers").status_code] += 1


@dataclass
class Installation:
    """A stack with servers of its own, its workload, and a connection to Postgres as the owner."""

    stack: Stack
    workload: Workload
    api: Api

    @property
    def disk(self) -> Path:
        return self.stack.data_dir / "small"

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.stack.database_url, autocommit=True)

    def run(self, *statements: str) -> None:
        with self.connect() as conn:
            for statement in statements:
                conn.execute(statement.encode())

    def causes(self) -> set[str]:
        answer = httpx.get(f"{self.stack.api_url}/readyz", timeout=30).json()
        return set(answer["causes"].values())

    def workers(self) -> list[int]:
        return [self.stack.pids[role] for role in ("worker", "worker_webhook", "beat", "api")]

    def tracebacks(self) -> list[str]:
        """The log lines of the stack about unexpected errors."""
        logs = (self.stack.data_dir / "log").glob("*.log")
        ours = [path for path in logs if path.stem not in {"postgres", "redis"}]
        lines = [line for path in ours for line in path.read_text().splitlines()]
        return [line for line in lines if '"exception"' in line or "Traceback" in line]

    def is_settled_to(self, moment_ms: float) -> bool:
        """Tell whether everything that was buffered before a time has left the buffer."""
        buffer = self.workload.shop.buffer
        heads = [buffer.read_head(shard, 1) for shard in buffer.backlog().busy]
        return all(head[0].position[0] > moment_ms for head in heads if head)


@pytest.fixture(scope="module")
def installation(module_data_dir: Path, variables: Mapping[str, str]) -> Iterator[Installation]:
    overrides = {"GULLAK_DURABILITY": "strict"}
    with Stack(module_data_dir / "data", variables=variables, overrides=overrides) as stack:
        urls = {"DATABASE_URL": stack.database_url, "REDIS_URL": stack.redis_url}
        config = settings_from({**urls, **overrides})
        sessions, buffer = Sessions(make_engine(config)), open_buffer(config)
        workload = SharedWorkload.open(sessions, buffer)
        bare = Api(stack.api_url, sessions, workload.shop.business_id, "")
        key = bare.key_for()
        yield Installation(
            stack, workload, Api(stack.api_url, sessions, workload.shop.business_id, key)
        )
        buffer.redis.close()
        sessions.engine.dispose()


# --- how Postgres fails ---------------------------------------------------------------------------


@contextmanager
def disk_said_to_be_full(installation: Installation) -> Iterator[None]:
    installation.run(
        "CREATE OR REPLACE FUNCTION zz_fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'No space left on device'; END $$",
        "CREATE TRIGGER zz_fault BEFORE INSERT ON ledger_entries"
        " FOR EACH STATEMENT EXECUTE FUNCTION zz_fault()",
    )
    yield
    installation.run("DROP TRIGGER zz_fault ON ledger_entries")


@contextmanager
def small_disk(installation: Installation) -> Iterator[None]:
    """Put the entries on a small disk of their own."""
    disk = installation.disk
    with mounted(disk, of=installation.stack.data_dir / "postgres"):
        installation.run(
            f"CREATE TABLESPACE zz_small LOCATION '{disk / 'space'}'",
            "ALTER TABLE ledger_entries SET TABLESPACE zz_small",
        )
        yield
        installation.run(
            "ALTER TABLE ledger_entries SET TABLESPACE pg_default", "DROP TABLESPACE zz_small"
        )


@contextmanager
def disk_full(installation: Installation) -> Iterator[None]:
    """Fill the rest of the small disk with a file."""
    ballast = installation.disk / "ballast"
    fill(ballast)
    yield
    ballast.unlink()


def fill(ballast: Path) -> None:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@contextmanager
def mounted(disk: Path, of: Path) -> Iterator[None]:
    """A file system of limited size for the owner of a folder. It needs root."""
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={SMALL_DISK}", "none", str(disk)]
    done = subprocess.run(["mount", *options], check=False, capture_output=True, text=True)
    if done.returncode:
        disk.rmdir()
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        (disk / "space").mkdir()
        os.chown(disk / "space", of.stat().st_uid, of.stat().st_gid)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        disk.rmdir()


@contextmanager
def table_locked(installation: Installation) -> Iterator[None]:
    with installation.connect() as conn, conn.transaction():
        conn.execute("LOCK TABLE ledger_entries IN ACCESS EXCLUSIVE MODE")
        yield


@contextmanager
def table_missing(installation: Installation) -> Iterator[None]:
    installation.run("ALTER TABLE ledger_entries RENAME TO zz_away")
    yield
    installation.run("ALTER TABLE zz_away RENAME TO ledger_entries")


@pytest.fixture
def _small_disk(installation: Installation) -> Iterator[None]:
    with small_disk(installation):
        yield


Fault = Callable[[Installation], AbstractContextManager[None]]
FAULTS: Mapping[str, tuple[Fault, str]] = {
    "disk said to be full": (disk_said_to_be_full, "disk_full"),
    "disk full": (disk_full, "disk_full"),
    "table locked": (table_locked, "locked"),
    "table missing": (table_missing, "table_missing"),
}


# Rows without traffic are in tests/integration/debit/test_server_fault.py.
@pytest.mark.parametrize("name", mostly_slow(FAULTS))
def test_nothing_is_refused_lost_or_charged_twice(
    installation: Installation, request: pytest.FixtureRequest, name: str
) -> None:
    fault, cause = FAULTS[name]
    if fault is disk_full:
        request.getfixturevalue("_small_disk")
    lasts_s = request.config.getoption("fault_seconds") or of_tier(2, 5)
    workload = installation.workload
    clients = Clients(workload, installation.api, name)
    workers = installation.workers()
    causes: set[str] = set()
    with Producer(workload, installation.stack.redis_url) as producer, clients:
        before = producer.recorded()
        wait_for(lambda: workload.has_ended(before))
        posted = workload.counted("posted_count")

        with ExitStack() as failing:
            failing.enter_context(fault(installation))
            ends_at = time.monotonic() + lasts_s
            while time.monotonic() < ends_at:
                causes |= installation.causes()
                time.sleep(0.2)
            ended_ms = time.time() * 1000
            buffered = workload.shop.buffer.backlog().events
            failing.close()
        wait_for(lambda: installation.is_settled_to(ended_ms))
        back_s = time.time() - ended_ms / 1000

        clients.__exit__()
        producer.finish()
    workload.wait_drained()

    assert cause in causes
    assert installation.workers() == workers
    assert (set(clients.ingested), set(clients.read)) == ({200}, {200})
    assert set(clients.written) <= {200, 503}
    assert workload.shop.rows(
        f"SELECT count(*) FROM ledger_entries WHERE idempotency_key LIKE '{name}-%'"
    ) == [(clients.entries,)]
    assert workload.broken() == []
    assert installation.tracebacks() == []
    wait_for(lambda: not installation.causes() and not installation.stack.missing())
    print(  # noqa: T201
        f"\n{name}: {lasts_s:.0f} s, causes {sorted(causes)}; buffered at its end {buffered},"
        f" posted {workload.counted('posted_count') - posted}, back in {back_s:.1f} s; ingests"
        f" {dict(clients.ingested)}, the slowest {clients.slowest_s:.2f} s; writes"
        f" {dict(clients.written)}; reads {dict(clients.read)}"
    )
