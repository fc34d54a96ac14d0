"""What every store needs of Postgres: the transaction type, `COPY`, and which errors pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, LiteralString

import psycopg
from psycopg.sql import SQL
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

# Opens a transaction that commits when the block ends and rolls back when it raises.
Transactions = Callable[[], AbstractContextManager[Connection]]

_GIVEN_UP_SQLSTATES: Final = frozenset(
    {
        "40001",  # serialization failure
        "40P01",  # deadlock detected
        "55P03",  # lock not available: lock_timeout
    }
)
_TRANSIENT_SQLSTATES: Final = _GIVEN_UP_SQLSTATES | frozenset(
    {
        "57014",  # query canceled: statement_timeout
        "57P01",  # admin shutdown
        "57P02",  # crash shutdown
        "57P03",  # cannot connect now
        "53300",  # too many connections
    }
)


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


def is_timeout(error: BaseException) -> bool:
    """Tell whether a statement took too long: less of it may be what helps."""
    cause = cause_of(error)
    return isinstance(cause, psycopg.errors.QueryCanceled)


def is_transient(error: BaseException) -> bool:
    """Tell whether the whole transaction may simply be run again: the cause is not in the data."""
    cause = cause_of(error)
    if not isinstance(cause, psycopg.Error):
        return False
    if cause.sqlstate is None or cause.sqlstate.startswith("08"):
        return isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError)
    return cause.sqlstate in _TRANSIENT_SQLSTATES


def is_rolled_back(error: BaseException) -> bool:
    """Tell whether Postgres itself gave the transaction up: for certain nothing was written.

    A connection that is lost at the commit leaves that open.
    """
    cause = cause_of(error)
    return isinstance(cause, psycopg.Error) and cause.sqlstate in _GIVEN_UP_SQLSTATES
