"""Postgres for every store: transactions, rows as models, the clock, `COPY`, kinds of errors."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from psycopg.sql import SQL
from sqlalchemy import Connection, Result, Row
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from metering.errors import NotFoundError
from metering.statements import CLOCK

Model = TypeVar("Model")

# Opens a transaction that commits when the block ends and rolls back when it raises.
Transactions = Callable[[], AbstractContextManager[Connection]]

# Whose fault an error is, by the class of its SQLSTATE. Only these two classes blame the data: a
# data exception, and a violated constraint. All others are the fault of the server, its operator
# or Gullak: a full disk, a locked, missing or broken table, a limit, a standby. Then the data
# waits: it is not refused, not split, and the attempt does not count. The guards of the ledger
# raise class 23.
_DATA_CLASSES: Final = frozenset({"22", "23"})
# Postgres ended one of two transactions that were in each other's way.
_GAVE_WAY: Final = frozenset({"40001", "40P01"})
# No connection of the pool got free in time; a connection was lost inside of a savepoint.
_OF_THE_POOL: Final = (PoolTimeoutError, PendingRollbackError)

# What to catch where a database may fail: `COPY` raises the driver's own errors.
DATABASE_ERRORS: Final = (DBAPIError, psycopg.Error, *_OF_THE_POOL)

# What an operator has to look for; the rest is called by its SQLSTATE.
_CAUSES: Final = {
    "25006": "read_only",
    "25P03": "idle_in_transaction",
    "40001": "serialization_failure",
    "40P01": "deadlock",
    "42501": "permission_denied",
    "42703": "column_missing",
    "42P01": "table_missing",
    "53100": "disk_full",
    "53200": "out_of_memory",
    "53300": "too_many_connections",
    "55P03": "locked",
    "57014": "statement_timeout",
    "57P01": "shutting_down",
    "57P02": "crashed",
    "57P03": "starting_up",
    "58030": "io_error",
    "XX001": "data_corrupted",
    "XX002": "index_corrupted",
}
_UNREACHABLE: Final = "unreachable"


def row(model: Callable[..., Model], found: Row[Any]) -> Model:
    """Return the model whose fields are the columns of a row."""
    return model(**found._mapping)  # noqa: SLF001 - the public name of a row's mapping


def rows(model: Callable[..., Model], found: Iterable[Row[Any]]) -> list[Model]:
    """Return a model for each row of a result."""
    return [row(model, each) for each in found]


def get_one(model: Callable[..., Model], found: Result[Any], kind: str, object_id: str) -> Model:
    """Return the only row of a result as a model.

    Raises: NotFoundError of this kind and id if there is none.
    """
    only = found.one_or_none()
    if only is None:
        raise NotFoundError(kind, object_id)
    return row(model, only)


def database_now(conn: Connection) -> datetime:
    """Return the time by the clock of the database, which decides about money."""
    moment: datetime = conn.execute(CLOCK).scalar_one()
    return moment


def driver(conn: Connection) -> psycopg.Connection[tuple[object, ...]]:
    """Return the psycopg connection under a SQLAlchemy one, for `COPY`."""
    raw = conn.connection.driver_connection
    if not isinstance(raw, psycopg.Connection):
        raise TypeError(f"the driver is {type(raw).__name__}, not psycopg")
    return raw


def copy_in(conn: Connection, statement: LiteralString, lines: list[str]) -> None:
    """Stream `lines` (COPY text format, without line ends) into `statement`'s table."""
    if not lines:
        return
    with driver(conn).cursor() as cursor, cursor.copy(SQL(statement)) as copy:
        copy.write("\n".join(lines).encode() + b"\n")


def cause_of(error: BaseException) -> BaseException | None:
    """Return the driver's own error: SQLAlchemy wraps those of its statements, not of `COPY`."""
    return error.orig if isinstance(error, DBAPIError) else error


def sqlstate_of(error: BaseException) -> str | None:
    """Return the five characters by which Postgres names an error; None if it is not Postgres'."""
    cause = cause_of(error)
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


def is_data_fault(error: BaseException) -> bool:
    """Tell whether the database refuses what was to be stored, as it would every time."""
    cause = cause_of(error)
    if not isinstance(cause, psycopg.Error):
        return False
    if cause.sqlstate is None:
        # The driver refuses it before it is sent, a NUL in a text for example.
        return isinstance(cause, psycopg.DataError)
    return cause.sqlstate[:2] in _DATA_CLASSES


def is_server_fault(error: BaseException) -> bool:
    """Tell whether the database failed for a cause that is not in what was to be stored."""
    return isinstance(error, DATABASE_ERRORS) and not is_data_fault(error)


def has_given_way(error: BaseException) -> bool:
    """Tell whether the transaction may be run again at once: nothing of it was written."""
    return sqlstate_of(error) in _GAVE_WAY


def is_rolled_back(error: BaseException) -> bool:
    """Tell whether for certain nothing was written.

    Postgres says so by an error that is not the end of the connection. A connection that is lost
    at the commit leaves it open.
    """
    cause = cause_of(error)
    if isinstance(cause, PoolTimeoutError) or has_given_way(error):
        return True
    return isinstance(cause, psycopg.Error) and cause.diag.severity_nonlocalized == "ERROR"


def is_timeout(error: BaseException) -> bool:
    """Tell whether a statement took too long: less of it may be what helps."""
    cause = cause_of(error)
    return isinstance(cause, psycopg.errors.QueryCanceled)


def cause_name(error: BaseException) -> str:
    """Return a server's fault in a word for people, without anything that is secret."""
    sqlstate = sqlstate_of(error)
    if isinstance(error, PoolTimeoutError):
        return "too_many_connections"
    if sqlstate is None and isinstance(cause_of(error), psycopg.ProgrammingError):
        return "driver_error"
    if sqlstate is None or sqlstate.startswith("08"):
        return _UNREACHABLE
    return _CAUSES.get(sqlstate, f"sqlstate_{sqlstate}")
