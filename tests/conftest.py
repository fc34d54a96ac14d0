"""Real servers for the tests that need them: one Postgres and one Redis per test process.

They start when a fixture first asks for them. Each test gets a database of its own, cloned from a
migrated template, so that commits, locks and triggers are the real ones.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import psycopg
import pytest
import structlog
from httpx._transports import default as transports
from redis import Redis

from metering.buffer.stream import UsageBuffer
from metering.ids import new_ulid
from support import tiers
from support.tenant import shared_database
from worker.context import open_buffer
from worker.local.embedded import ROLE, Credentials, open_credentials, postgres_role, redis_role
from worker.local.files import lock_data_dir
from worker.local.supervisor import Supervisor
from worker.local.up import Stack
from worker.migrate import migrate_database
from worker.session import Sessions, make_engine
from worker.settings import Settings, environment, settings_from

# A shell without job control starts background processes with SIGINT ignored. The processes of a
# test would inherit that, and the tests end them by SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Each client of httpx reads all certificates: 24 ms, a thousand times. Once is enough for tests.
transports.create_ssl_context = cache(transports.create_ssl_context)  # type: ignore[attr-defined]

# By default structlog shows the variables of each frame: 2 s of CPU for each logged exception.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

HERE = Path(__file__).parent
UNIT = HERE / "unit"
IS_TRACED = sys.gettrace() is not None  # coverage takes as much time again
StartStack = Callable[..., Stack]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-statement",
        action="store_true",
        help="every SQLSTATE at every statement: minutes",
    )
    parser.addoption("--fault-seconds", type=float, help="how long a server fails under traffic")
    parser.addoption("--histories", type=int, help="random histories per policy")
    parser.addoption(
        "--slow", action="store_true", help="the slow tier too: all of `make test-all`"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let modules ask for the tier while they are imported."""
    tiers.is_slow = bool(config.getoption("--slow"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tier out unless an option selects it."""
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that takes too long for its tier. The slow tier tries more examples of many."""
    before = sum(os.times()[:4])
    yield
    used_s = sum(os.times()[:4]) - before
    limit_s = tiers.CPU_S_MAX.get(item.path.relative_to(HERE).parts[0])
    is_limited = not (tiers.is_slow or item.get_closest_marker("slow") or IS_TRACED)
    if limit_s and used_s > limit_s and is_limited:
        pytest.fail(f"{used_s:.1f} s of CPU, at most {limit_s}: make it faster, or mark it slow")


@dataclass(frozen=True)
class Servers:
    """The servers of this test process; `template` is the migrated database."""

    credentials: Credentials
    template: str = "gullak"

    def url_of(self, database: str) -> str:
        base, _, _ = self.credentials.database_url.rpartition("/")
        return f"{base}/{database}"

    def execute(self, statement: str) -> None:
        """Run one statement outside a transaction, on the maintenance database."""
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as conn:
            conn.execute(statement)


@pytest.fixture(autouse=True)
def _no_sockets_in_unit_tests(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if UNIT in request.path.parents:

        def refuse(_socket: socket.socket, address: object) -> None:
            pytest.fail(f"a unit test connects to {address}")

        monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def variables() -> dict[str, str]:
    """An environment for processes, without anything that configures Gullak."""
    # A process that keeps no bytecode compiles everything anew: 2 s of CPU for each start.
    left_out = {"DATABASE_URL", "REDIS_URL", "BROKER_URL", "PYTHONDONTWRITEBYTECODE"}
    return {
        name: value
        for name, value in environment().items()
        if name not in left_out and not name.startswith(("GULLAK_", "PROMETHEUS_"))
    }


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A new folder for servers; short, and not below the closed folder of pytest."""
    yield from new_folder()


@pytest.fixture(scope="module")
def module_data_dir() -> Iterator[Path]:
    """The same, for the tests of a module together."""
    yield from new_folder()


def new_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="gullak-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    folder = Path(tempfile.mkdtemp(prefix="gullak-tests-"))
    supervisor = Supervisor()
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        cleanup.enter_context(lock_data_dir(folder))
        cleanup.callback(supervisor.close)
        credentials = open_credentials(folder)
        postgres = postgres_role(folder, credentials, fast_unsafe=True)
        supervisor.start([postgres, redis_role(folder, credentials, "everysec")])
        migrate_database(settings_from({"DATABASE_URL": credentials.database_url}))
        opened = Servers(credentials)
        # A test opens a few sessions, and 4096 rounds of hashing take longer than most of its work.
        password = credentials.postgres_password
        opened.execute(f"SET scram_iterations = 1; ALTER ROLE {ROLE} PASSWORD '{password}'")
        yield opened


_numbers = count(1)


@pytest.fixture
def empty_database_url(servers: Servers) -> Iterator[str]:
    """A database without tables."""
    yield from _database(servers, "template1")


@pytest.fixture
def database_url(servers: Servers) -> Iterator[str]:
    """A migrated database of this test's own."""
    yield from _database(servers, servers.template)


def _database(servers: Servers, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    servers.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield servers.url_of(name)
    servers.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def module_database_url(servers: Servers) -> Iterator[str]:
    """One database for the tests of a module, each of which has a business of its own."""
    with shared_database(servers.execute, servers.template, f"shared_{new_ulid().lower()}") as name:
        yield servers.url_of(name)


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """The Redis of this test process, emptied."""
    with Redis.from_url(servers.credentials.redis_url) as client:
        client.flushall()
    return servers.credentials.redis_url


@pytest.fixture
def config(database_url: str, redis_url: str) -> Settings:
    """Settings of this test's database and Redis, whatever the environment says."""
    return settings_from({"DATABASE_URL": database_url, "REDIS_URL": redis_url})


@pytest.fixture
def sessions(config: Settings) -> Iterator[Sessions]:
    engine = make_engine(config)
    yield Sessions(engine)
    engine.dispose()


@pytest.fixture
def buffer(config: Settings) -> Iterator[UsageBuffer]:
    opened = open_buffer(config)
    yield opened
    opened.redis.close()


@pytest.fixture
def start_stack(
    database_url: str, redis_url: str, variables: Mapping[str, str]
) -> Iterator[StartStack]:
    """Start real workers and beat on this test's servers: `start_stack(GULLAK_…="…") -> Stack`.

    All stacks are stopped at the end of the test; each has a data directory of its own.
    """
    with ExitStack() as running:

        def start(**overrides: str) -> Stack:
            folder = Path(tempfile.mkdtemp(prefix="gullak-stack-"))
            running.callback(shutil.rmtree, folder, ignore_errors=True)
            urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
            return running.enter_context(
                Stack(folder, variables=variables, overrides={**urls, **overrides})
            )

        yield start
