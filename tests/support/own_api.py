"""An API process of one test's own: to be killed, frozen and started again on the same port."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx

from worker.local.port import HOST, free_port

START_TIMEOUT_S = 60


class OwnApi:
    """`url` stays the same over a restart."""

    def __init__(
        self, variables: Mapping[str, str], database_url: str, redis_url: str, **overrides: str
    ) -> None:
        urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        self._environment = {**variables, **urls, **overrides}
        self._port = free_port()
        self.url = f"http://{HOST}:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api.server", "--host", HOST, "--port", str(self._port)],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/livez", timeout=5).is_success
        except httpx.TransportError:
            return False

    def send(self, signum: int) -> None:
        assert self._process
        self._process.send_signal(signum)

    def stop(self) -> None:
        """End it as a deployment does."""
        assert self._process
        self._process.terminate()
        self._process.wait()

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()


@contextmanager
def running_own_api(
    variables: Mapping[str, str], database_url: str, redis_url: str
) -> Iterator[OwnApi]:
    """Start an API process, and kill it at the end."""
    server = OwnApi(variables, database_url, redis_url)
    server.start()
    try:
        yield server
    finally:
        server.kill()
