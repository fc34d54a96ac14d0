"""The simulator's objects in a SQLite file: each change is on disk before it is answered."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from metering.errors import NotFoundError
from metering.ids import new_id
from worker.demo.simulator import statements

BUSY_TIMEOUT_S: Final = 10
PAGE_ROWS: Final = 10
# Waits between the attempts to send an event that is not taken; the last one is repeated.
RETRY_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)

Json: TypeAlias = dict[str, Any]


class Due(NamedTuple):
    """An event to be sent, or a payment to succeed."""

    id: str
    body: str
    due_at: float
    attempts: int


@dataclass(frozen=True, slots=True)
class Books:
    """The objects within one transaction."""

    conn: sqlite3.Connection
    new_id: Callable[[str], str]

    def put(self, thing: Json, due_at: float | None = None) -> Json:
        """Store an object, or its new state."""
        values = {"id": thing["id"], "kind": thing["object"], "body": json.dumps(thing)}
        self.conn.execute(statements.PUT, {**values, "due_at": due_at})
        return thing

    def find(self, kind: str, id_: str) -> Json | None:
        """Return an object. Returns None if there is none."""
        found = self.conn.execute(statements.GET, {"kind": kind, "id": id_}).fetchone()
        return None if found is None else _parsed(found[0])

    def get(self, kind: str, id_: str) -> Json:
        """Return an object, or raise `NotFoundError`."""
        found = self.find(kind, id_)
        if found is None:
            raise NotFoundError(kind, id_)
        return found

    def page(self, kind: str, form: Mapping[str, str]) -> Json:
        """Return a page of objects as the API lists them."""
        limit = int(form.get("limit", PAGE_ROWS))
        values = {
            "kind": kind,
            "created": int(form.get("created[gte]", 0)),
            "parent": form.get("customer", form.get("payment_intent")),
            "after": form.get("starting_after"),
            "rows": limit + 1,
        }
        found = [_parsed(body) for (body,) in self.conn.execute(statements.PAGE, values)]
        return {"object": "list", "url": "/", "data": found[:limit], "has_more": len(found) > limit}

    def tell(self, type_: str, thing: Json) -> None:
        """Add an event about an object, which is due at once."""
        event = {
            "id": self.new_id("evt"),
            "object": "event",
            "created": int(time.time()),
            "type": type_,
            "livemode": False,
            "pending_webhooks": 1,
            "data": {"object": thing},
        }
        self.put(event, time.time())


class Store:
    """Thread-safe: each transaction has its own connection, and no other runs beside it."""

    def __init__(self, path: Path, new_id: Callable[[str], str] = new_id) -> None:
        self._path, self._new_id = path, new_id
        with self.open() as books:
            books.conn.execute(statements.SCHEMA)

    @contextmanager
    def open(self) -> Iterator[Books]:
        """Begin a transaction; it is on disk when the block ends."""
        with closing(sqlite3.connect(self._path, BUSY_TIMEOUT_S, isolation_level=None)) as conn:
            conn.execute("PRAGMA synchronous = FULL")
            with conn:
                conn.execute("BEGIN IMMEDIATE")
                yield Books(conn, self._new_id)

    def due(self, kind: str) -> Due | None:
        """Return the oldest object of a kind that is due."""
        values = {"kind": kind, "now": time.time()}
        with self.open() as books:
            found = books.conn.execute(statements.DUE, values).fetchone()
        return None if found is None else Due(*found)

    def note_sent(self, event: Due, *, is_taken: bool) -> None:
        """Note that an event was sent; unless it was taken, it is sent again."""
        wait_s = RETRY_S[min(event.attempts, len(RETRY_S) - 1)]
        values = {**event._asdict(), "next_at": time.time() + wait_s}
        if is_taken:
            sent = {**_parsed(event.body), "pending_webhooks": 0}
            values |= {"body": json.dumps(sent), "next_at": None}
        with self.open() as books:
            books.conn.execute(statements.SENT, values)


def _parsed(body: str) -> Json:
    parsed: Json = json.loads(body)
    return parsed
