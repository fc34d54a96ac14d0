"""`gullak up` as a real process, from outside: signals, kills, restarts, its ready file."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from redis import Redis

from support.tiers import mostly_slow
from worker.health import answers_ready

READY_WITHIN_S = 120
ROLES = ("postgres", "redis", "worker", "worker_webhook", "beat", "api")
TWO_WORKERS = ("--workers", "2")


@dataclass
class Up:
    """A running `gullak up`."""

    process: subprocess.Popen[str]
    ready_file: Path
    data_dir: Path

    @property
    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.ready_file.read_text()))

    @property
    def pids(self) -> dict[str, int]:
        return dict(self.state["pids"])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def wait_for(condition: Callable[[], object], within_s: float = READY_WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def command(data_dir: Path, *more: str) -> list[str]:
    gullak = str(Path(sys.executable).with_name("gullak"))
    return [gullak, "up", "--data-dir", str(data_dir), "--port", "0", *more]


@contextmanager
def run_up(data_dir: Path, variables: Mapping[str, str], *options: str) -> Iterator[Up]:
    ready_file = data_dir.with_suffix(".ready")
    log = data_dir.with_suffix(".log")
    with log.open("a") as output:
        process = subprocess.Popen(
            command(data_dir, "--ready-file", str(ready_file), *options),
            env=variables,
            stdout=output,
            stderr=output,
            text=True,
        )
    try:
        wait_for(lambda: ready_file.exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Up(process, ready_file, data_dir)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        log.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def up(module_data_dir: Path, variables: Mapping[str, str]) -> Iterator[Up]:
    """One stack for the tests that leave it running."""
    with run_up(module_data_dir / "data", variables, *TWO_WORKERS) as running:
        yield running


def is_ready(up: Up) -> bool:
    return answers_ready(up.state["api_url"])


def family(pid: int) -> list[psutil.Process]:
    """Return the process and all that it started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def execute(up: Up, statement: str) -> Any:
    with psycopg.connect(up.state["database_url"]) as conn:
        cursor = conn.execute(statement)
        return cursor.fetchone() if cursor.description else None


def test_the_ready_file_names_live_servers_and_processes(up: Up) -> None:
    state = up.state

    assert set(state["pids"]) == {"supervisor", "worker_2", *ROLES}
    assert all(psutil.pid_exists(pid) for pid in state["pids"].values())
    assert state["pids"]["supervisor"] == up.process.pid
    assert execute(up, "SELECT count(*) FROM wallets") == (0,)
    answer = httpx.get(
        f"{state['api_url']}/customers", headers={"Authorization": f"Bearer {state['api_key']}"}
    )
    assert answer.json() == {"items": []}
    with Redis.from_url(state["redis_url"]) as redis:
        assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_only_the_owner_can_read_the_ready_file(up: Up) -> None:
    assert up.ready_file.stat().st_mode & 0o777 == 0o600


def test_no_password_is_visible_in_the_process_list(up: Up) -> None:
    secrets = [up.state[url].split(":")[2].split("@")[0] for url in ("database_url", "redis_url")]

    arguments = [" ".join(process.cmdline()) for process in family(up.process.pid)]

    assert not [line for line in arguments if any(secret in line for secret in secrets)]


def test_counters_of_all_processes_are_served(up: Up) -> None:
    def counted() -> bool:
        text = httpx.get(up.state["metrics_url"]).text
        return 'task="debit.sweep"' in text and 'task="webhook.sweep"' in text

    wait_for(counted)


def test_a_second_stack_on_the_data_directory_is_refused(
    up: Up, variables: Mapping[str, str]
) -> None:
    second = subprocess.run(
        command(up.data_dir), env=variables, capture_output=True, text=True, check=False, timeout=30
    )

    assert second.returncode == 1
    assert second.stderr.splitlines() == [
        f"gullak: {up.data_dir} is in use by another gullak (process {up.process.pid})"
    ]
    assert up.process.poll() is None


@pytest.mark.parametrize("role", mostly_slow(ROLES, "api", "worker_webhook"))
def test_a_killed_process_is_replaced_and_leaves_no_orphans(up: Up, role: str) -> None:
    wait_for(lambda: is_ready(up))
    before = up.pids[role]
    killed = family(before)

    os.kill(before, signal.SIGKILL)

    wait_for(lambda: up.pids.get(role, before) != before, within_s=15)
    wait_for(lambda: is_ready(up), within_s=30)
    wait_for(lambda: not alive(killed), within_s=10)
    assert psutil.pid_exists(up.pids[role])


@pytest.mark.slow
def test_committed_and_appended_data_survives_kills_of_the_servers(up: Up) -> None:
    wait_for(lambda: is_ready(up))
    execute(up, "CREATE TABLE kept AS SELECT 7 AS seven")
    with Redis.from_url(up.state["redis_url"]) as redis:
        redis.set("kept", "7")
    time.sleep(1.1)  # the append-only file is synced every second

    for role in ("postgres", "redis"):
        os.kill(up.pids[role], signal.SIGKILL)
    wait_for(lambda: not is_ready(up))
    wait_for(lambda: is_ready(up))

    assert execute(up, "SELECT seven FROM kept") == (7,)
    with Redis.from_url(up.state["redis_url"]) as redis:
        assert redis.get("kept") == b"7"


def is_verified_since(up: Up, moment: float) -> bool:
    """Tell whether a walk over the ledger began and ended after a moment."""
    text = httpx.get(up.state["metrics_url"]).text
    found = re.findall(r"^gullak_ledger_verified_timestamp_seconds (\S+)$", text, re.MULTILINE)
    return any(float(value) > moment for value in found)


def test_data_survives_sigterm_and_a_kill_of_the_supervisor_and_no_process_remains(
    data_dir: Path, variables: Mapping[str, str]
) -> None:
    """The ledger is verified soon after each start."""
    started = time.time()
    with run_up(data_dir / "data", variables) as first:
        urls = (first.state["database_url"], first.state["redis_url"])
        execute(first, "CREATE TABLE kept AS SELECT 7 AS seven")
        with Redis.from_url(urls[1]) as redis:
            redis.set("kept", "7")
        processes = family(first.process.pid)
        wait_for(lambda: is_verified_since(first, started), 30)

        assert first.stop() == 0

        assert alive(processes) == []
        assert not first.ready_file.exists()
    started = time.time()
    with run_up(data_dir / "data", variables) as second:
        assert (second.state["database_url"], second.state["redis_url"]) == urls
        assert execute(second, "SELECT seven FROM kept") == (7,)
        with Redis.from_url(urls[1]) as redis:
            assert redis.get("kept") == b"7"
        wait_for(lambda: is_verified_since(second, started), 30)
        processes = family(second.process.pid)

        second.process.kill()
        second.process.wait()
        second.ready_file.unlink()

        with run_up(data_dir / "data", variables) as third:
            assert alive(processes) == []
            assert execute(third, "SELECT seven FROM kept") == (7,)


def test_the_error_names_the_address_of_a_used_port(
    data_dir: Path, variables: Mapping[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = subprocess.run(
            [*command(data_dir)[:-1], str(port)],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    assert refused.returncode == 1
    assert refused.stderr.startswith(f"gullak: cannot listen on 127.0.0.1:{port}")


def test_the_error_names_a_bad_setting_without_its_value(
    data_dir: Path, variables: Mapping[str, str]
) -> None:
    refused = subprocess.run(
        command(data_dir),
        env={**variables, "GULLAK_SHARDS": "s3cret"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert refused.returncode == 1
    assert refused.stderr.startswith("gullak: shards: ")
    assert "s3cret" not in refused.stderr


def test_a_receiver_on_this_machine_gets_webhooks_without_a_setting(up: Up) -> None:
    heard: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.headers["webhook-id"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    def gullak(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("gullak")), *arguments]
        ran = subprocess.run(
            [*command, "--data-dir", str(up.data_dir)], capture_output=True, text=True, check=True
        )
        assert ran.stderr == ""
        return ran.stdout

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/hook"
        endpoint = gullak("endpoint", "create", url).split()[0]
        sent = gullak("endpoint", "test", endpoint).split()[0]
        wait_for(lambda: sent in heard, 60)
        wait_for(lambda: "delivered" in gullak("webhook", "list", "--status", "delivered"), 30)
        server.shutdown()

    assert gullak("webhook", "list") == "none\n"
    gullak("endpoint", "delete", endpoint)


def test_a_worker_measures_the_items_that_wait_for_a_person(up: Up) -> None:
    lost = {"event_id": "measured-1", "customer_id": "cus_unknown", "event_name": "e"}
    refused = 'gullak_refused_events{reason="unknown_customer"} 1.0'
    asks = "from worker.app import app; from worker.broker import send; send(app, 'ledger.measure')"
    urls = {"DATABASE_URL": up.state["database_url"], "REDIS_URL": up.state["redis_url"]}

    def measured() -> bool:
        # Instead of waiting for beat.
        subprocess.run([sys.executable, "-c", asks], env={**os.environ, **urls}, check=True)
        return refused in httpx.get(up.state["metrics_url"]).text

    httpx.post(
        f"{up.state['api_url']}/events/ingest",
        headers={"Authorization": f"Bearer {up.state['api_key']}"},
        json={"events": [lost]},
    )

    wait_for(measured, 60)


def gullak(variables: Mapping[str, str], data_dir: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*command(data_dir)[:1], *arguments, "--data-dir", str(data_dir)],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_secrets_are_sealed_with_the_key_in_the_data_directory(
    up: Up, variables: Mapping[str, str]
) -> None:
    wait_for(lambda: is_ready(up))
    out = gullak(variables, up.data_dir, "endpoint", "create", "https://example.com/hook")
    endpoint_id, secret = re.findall(r"(?:whk|whsec)_\S+", out)

    answer = httpx.get(
        f"{up.state['api_url']}/webhooks/{endpoint_id}/secret",
        headers={"Authorization": f"Bearer {up.state['api_key']}"},
    )

    assert answer.json() == {"secret": secret}
    assert execute(up, "SELECT secret LIKE 'sealed:%' FROM webhook_endpoints") == (True,)
    assert (up.data_dir / "secret_key").stat().st_mode & 0o777 == 0o600
    assert (up.data_dir / "in_use.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_commands_find_servers_given_by_settings_through_the_data_directory(
    up: Up, data_dir: Path, variables: Mapping[str, str]
) -> None:
    """The second stack has its own database in the server of the first."""
    with psycopg.connect(up.state["database_url"], autocommit=True) as conn:
        conn.execute("CREATE DATABASE own")
    url = up.state["database_url"].rpartition("/")[0] + "/own"
    with run_up(data_dir / "data", {**variables, "DATABASE_URL": url}):
        created = gullak(variables, data_dir / "data", "business", "create", "Found it").split()[0]
        verified = gullak(variables, data_dir / "data", "verify")
    listed = gullak(variables, up.data_dir, "business", "list")

    with psycopg.connect(url) as conn:
        names = conn.execute("SELECT name FROM businesses ORDER BY business_id").fetchall()
    assert ("Found it",) in names
    assert created not in listed
    assert "no fault" in verified
