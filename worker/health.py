"""Probes, and `/metrics`, `/livez`, `/readyz` over HTTP.

Each process of the worker leaves its counters in files of one folder, named by its id. Those of
processes that have ended are folded into one file per kind, because a worker replaces its children
for ever.
"""

import json
import os
import ssl
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Final

import httpx
import psycopg
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from redis import Redis
from redis.exceptions import RedisError

from metering.errors import ConfigurationError

REQUEST_TIMEOUT_S: Final = 5
# Stands for all processes that have ended: no process of ours has this id.
ENDED: Final = 0
# The API speaks plain HTTP, and to read certificates would take 20 ms of each probe.
_NO_CERTIFICATES: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

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
        if kind in _FOLDED:
            _fold(path, folder / f"{kind}_{ENDED}.db", _FOLDED[kind])
            path.unlink()
        mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]


Sample = tuple[float, float]  # value, time of writing

_FOLDED: Final[dict[str, Callable[[Sample, Sample], Sample]]] = {
    "counter": lambda before, new: (before[0] + new[0], 0),
    "histogram": lambda before, new: (before[0] + new[0], 0),
    "gauge_mostrecent": lambda before, new: max(before, new, key=lambda sample: sample[1]),
}


def _fold(source: Path, target: Path, join: Callable[[Sample, Sample], Sample]) -> None:
    total = MmapedDict(str(target))  # type: ignore[no-untyped-call]
    try:
        samples = MmapedDict.read_all_values_from_file(str(source))  # type: ignore[no-untyped-call]
        for key, value, written_at, _ in samples:
            before = total.read_value(key)  # type: ignore[no-untyped-call]
            total.write_value(key, *join(before, (value, written_at)))  # type: ignore[no-untyped-call]
    finally:
        total.close()  # type: ignore[no-untyped-call]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def postgres_answers(url: str) -> bool:
    """Tell whether a session can be opened and answers, within 2 s."""
    try:
        with psycopg.connect(url, connect_timeout=2, application_name="gullak-probe") as conn:
            conn.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def redis_answers(url: str) -> bool:
    """Tell whether Redis answers and has loaded its data, within 2 s."""
    try:
        with Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
            return bool(client.ping())
    except RedisError:
        return False


def answers_ready(url: str) -> bool:
    """Tell whether the API at `url` says that it is ready, within 2 s."""
    try:
        return httpx.get(f"{url}/readyz", timeout=2, verify=_NO_CERTIFICATES).is_success
    except httpx.TransportError:
        return False


class HealthServer:
    """A small HTTP server in a thread of its own; `close` ends it.

    `missing` names what is not ready: `/readyz` answers 503 with the names, or 200.
    Port 0 takes any free port; `url` says where it listens.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        metrics: Callable[[], bytes],
        missing: Callable[[], list[str]],
    ) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(metrics, missing))
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_port}"
        self._thread = Thread(target=self._serve, name="health", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(
    metrics: Callable[[], bytes], missing: Callable[[], list[str]]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S  # a client that sends nothing holds its thread no longer

        def do_GET(self) -> None:  # the name that http.server looks for
            match self.path.partition("?")[0]:
                case "/livez":
                    self._answer(200, "application/json", b'{"alive": true}')
                case "/readyz":
                    names = missing()
                    body = json.dumps({"ready": not names, "missing": names}).encode()
                    self._answer(503 if names else 200, "application/json", body)
                case "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, metrics())
                case _:
                    self._answer(404, "text/plain", b"not found")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing: a probe every few seconds is not news."""

    return Handler


if __name__ == "__main__":
    # What the health check of a container runs: exit code 0 if the API at this URL is ready.
    sys.exit(not answers_ready(sys.argv[1]))
