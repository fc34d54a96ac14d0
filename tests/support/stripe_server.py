"""The payment simulator in this process, with answers that a test can spoil, for Stripe's SDK."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import uvicorn
from starlette.responses import JSONResponse, Response

from worker.demo.simulator.server import Asked, Simulator
from worker.demo.simulator.store import Store
from worker.local.port import HOST, free_port

Json = dict[str, Any]
Answering = Callable[[Response | None], Response | None]
START_TIMEOUT_S = 20
KEY = "sk_test_secret"


def error(status: int, **fields: Any) -> Response:
    return JSONResponse({"error": fields}, status)


def given(value: object) -> Response:
    return JSONResponse(value)


@dataclass
class StripeServer(Simulator):
    """Keeps its requests; `after` changes the next answers to a POST.

    Its ids count from 1: `pi_1`, `pi_2`, `cs_test_1`.
    """

    seen: list[Asked] = field(default_factory=list)
    after: list[Answering] = field(default_factory=list)
    # The answer of every list, if not the real one.
    lists: Response | None = None
    _spoilt: dict[str, Response | None] = field(default_factory=dict)

    @property
    def posts(self) -> list[Asked]:
        return [asked for asked in self.seen if asked.method == "POST"]

    def respond(self, asked: Asked) -> Response | None:
        self.seen.append(asked)
        if asked.method == "GET":
            return self.lists or super().respond(asked)
        key = asked.headers["idempotency-key"]
        if key not in self._spoilt:
            response = super().respond(asked)
            if not self.after:
                return response
            self._spoilt[key] = self.after.pop(0)(response)
        return self._spoilt[key]

    # --- faults -----------------------------------------------------------------------------

    def hang(self) -> None:
        """Carry the next POST out, and answer nothing."""
        self.after.append(lambda _carried_out: None)

    def answer_next(self, response: Response) -> None:
        """Carry the next POST out, and answer this; it is kept under the key, as Stripe does."""
        self.after.append(lambda _carried_out: response)

    # --- its contents -----------------------------------------------------------------------

    @property
    def intents(self) -> list[Json]:
        return self._all("payment_intent")

    @property
    def sessions(self) -> list[Json]:
        return self._all("checkout.session")

    def _all(self, kind: str) -> list[Json]:
        """The objects of a kind, the oldest first."""
        with self.store.open() as books:
            return list(reversed(books.page(kind, {"limit": "1000"})["data"]))

    def change(self, thing: Json, **changes: Any) -> None:
        with self.store.open() as books:
            books.put({**thing, **changes})

    def forget(self) -> None:
        """List no existing object any more; idempotency keys stay."""
        with self.store.open() as books:
            books.conn.execute("DELETE FROM objects WHERE kind <> 'answer'")

    def add_intents(self, number: int, customer: str, **changes: Any) -> None:
        with self.store.open() as books:
            for _ in range(number):
                made = {
                    "id": books.new_id("pi"),
                    "object": "payment_intent",
                    "customer": customer,
                    "status": "succeeded",
                    "created": int(time.time()),
                    "metadata": {},
                    "last_payment_error": None,
                }
                books.put({**made, **changes})


@contextmanager
def serving(folder: Path) -> Iterator[Callable[[], StripeServer]]:
    """Serve the newest of the simulators that the function makes, each without any payment."""
    url = f"http://{HOST}:{free_port()}"
    newest: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await newest[-1](scope, receive, send)

    def make() -> StripeServer:
        ids: dict[str, Any] = defaultdict(lambda: count(1))
        store = Store(folder / f"{len(newest)}.db", lambda kind: f"{kind}_{next(ids[kind])}")
        simulator = StripeServer(store, url, KEY)
        newest.append(simulator.app())
        return simulator

    config = uvicorn.Config(
        app,
        HOST,
        int(url.rpartition(":")[2]),
        lifespan="off",
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="stripe")
    thread.start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield make
    finally:
        server.should_exit = True
        thread.join()
