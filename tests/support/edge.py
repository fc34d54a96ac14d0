"""The API over a test's database and Redis, served by real HTTP in this process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from threading import Thread
from typing import Any

import httpx
import uvicorn

from api.app import create_app
from api.server import server_config
from metering.access.keys import PERMISSIONS, Permission, create_key
from metering.ids import BusinessId
from metering.payment.charges.store import Gateways
from worker.charging import open_gateway
from worker.local.port import HOST, free_port
from worker.session import Sessions
from worker.settings import Settings, settings_from

START_TIMEOUT_S = 20


@dataclass(frozen=True)
class Api:
    """A running API; `key` may do everything for `business_id`."""

    url: str
    sessions: Sessions
    business_id: BusinessId
    key: str

    @classmethod
    def open(cls, url: str, sessions: Sessions, business_id: BusinessId) -> "Api":
        """Return the API with a new key."""
        bare = cls(url, sessions, business_id, "")
        return replace(bare, key=bare.key_for())

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def key_for(self, *permissions: Permission, business_id: BusinessId | None = None) -> str:
        owner = business_id or self.business_id
        with self.sessions.transaction() as conn:
            return create_key(conn, owner, "test", permissions or PERMISSIONS).key


@cache
def description() -> dict[str, Any]:
    """The OpenAPI document of an installation with default settings: half a second of CPU."""
    return create_app(settings_from({})).openapi()


@contextmanager
def running_api(config: Settings, gateways: Gateways = open_gateway) -> Iterator[str]:
    """Serve the API with these settings; give its URL."""
    port = free_port()
    server = uvicorn.Server(server_config(create_app(config, gateways), HOST, port))
    thread = Thread(target=server.run, name="api")
    thread.start()
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://{HOST}:{port}"
    finally:
        server.should_exit = True
        thread.join()
