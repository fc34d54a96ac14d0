"""Probes of the servers, and the metrics of a worker over HTTP."""

import ssl
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Final

import httpx
import psycopg
from prometheus_client import CONTENT_TYPE_LATEST
from redis import Redis
from redis.exceptions import RedisError

from metering.errors import ConfigurationError

REQUEST_TIMEOUT_S: Final = 5
# The API speaks plain HTTP, and to read certificates would take 20 ms of each probe.
_NO_CERTIFICATES: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


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


def serve_health(host: str, port: int, metrics: Callable[[], bytes]) -> None:
    """Serve `/metrics`, `/livez` and `/readyz` from a thread, for as long as this process lives."""
    try:
        server = ThreadingHTTPServer((host, port), _handler(metrics))
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    server.daemon_threads = True
    Thread(target=server.serve_forever, name="health", daemon=True).start()


def _handler(metrics: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S  # a client that sends nothing holds its thread no longer

        def do_GET(self) -> None:  # the name that http.server looks for
            match self.path.partition("?")[0]:
                case "/livez":
                    self._answer(200, "application/json", b'{"alive": true}')
                case "/readyz":
                    self._answer(200, "application/json", b'{"ready": true, "missing": []}')
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
            """Log nothing: a probe every few seconds is not news."""

    return Handler


if __name__ == "__main__":
    # The health check of a container: exit code 0 if the API at this URL is ready.
    sys.exit(not answers_ready(sys.argv[1]))
