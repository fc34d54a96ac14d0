"""Real errors of Postgres, of any SQLSTATE, at any statement of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final

import psycopg
import pytest
from psycopg import errors

DATA: Final = ("22", "23")
# In addition to one of each class: common faults, and errors by which Postgres ends a session.
_KNOWN: Final = (
    "22003", "22P05", "23505", "23514", "25006", "25P03", "40001", "40P01", "42501", "42P01",
    "53100", "53200", "53300", "55P03", "57014", "57P03", "58030", "P0001", "XX001",
)  # fmt: skip
# The driver reports a lost answer to a commit by this.
LOST: Final = "lost"


def all_classes() -> list[str]:
    """One SQLSTATE of every class that the driver knows, those above, and one unknown to it."""
    first: dict[str, str] = {}
    for kind in vars(errors).values():
        sqlstate = getattr(kind, "sqlstate", None)
        if isinstance(sqlstate, str):
            first.setdefault(sqlstate[:2], sqlstate)
    return sorted({*first.values(), *_KNOWN, "ZZ999"})


@dataclass
class Injection:
    """An error at one statement, counted from 1 over all connections, and at each repetition of it.

    An answer to a commit is lost once.
    """

    sqlstate: str
    at: int
    statements: int = 0
    is_done: bool = False
    _failing: str | None = None
    _lock: Lock = field(default_factory=Lock)

    def is_due(self, statement: str) -> bool:
        with self._lock:
            self.statements += 1
            if self.statements == self.at:
                self.is_done = True
                self._failing = None if self.sqlstate == LOST else statement
                return True
            return statement == self._failing


@contextmanager
def injected(monkeypatch: pytest.MonkeyPatch, sqlstate: str, at: int) -> Iterator[Injection]:
    """Let Postgres fail the statement with this number; a `COPY` and a commit are statements.

    With `LOST` a commit succeeds, and its answer is lost with the connection.
    """
    injection = Injection(sqlstate, at)
    execute, copy, commit = psycopg.Cursor.execute, psycopg.Cursor.copy, psycopg.Connection.commit

    def fail(cursor: Any) -> None:
        execute(
            cursor,
            f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}', MESSAGE = 'injected';"
            " END $$",
        )

    def injected_execute(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        if sqlstate != LOST and injection.is_due(str(query)):
            fail(self)
        return execute(self, query, *args, **options)

    def injected_copy(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        if sqlstate != LOST and injection.is_due(str(query)):
            fail(self)
        return copy(self, query, *args, **options)

    def injected_commit(self: Any) -> None:
        if not injection.is_due("COMMIT"):
            commit(self)
        elif sqlstate == LOST:
            commit(self)
            self.close()
            raise psycopg.OperationalError("the connection is lost")
        else:
            fail(self.cursor())

    with monkeypatch.context() as patched:
        patched.setattr(psycopg.Cursor, "execute", injected_execute)
        patched.setattr(psycopg.Cursor, "copy", injected_copy)
        patched.setattr(psycopg.Connection, "commit", injected_commit)
        yield injection
