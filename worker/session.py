"""Engines, and the only place that commits: the end of a block of `Sessions`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from psycopg.sql import SQL, Literal
from sqlalchemy import Connection, Engine, create_engine, event

from metering.ids import BusinessId
from metering.vault import VAULT, Vault
from worker.settings import Settings, settings

# The tables that batches read stay in memory. At the default of 4, meant for spinning disks, a
# batch reads all 40,000 wallets to move 1,250 of them: 37 ms instead of 12.
_RANDOM_PAGE_COST: Final = 1.1
# An option of a connection: the statements that begin its transaction, if it is not plain BEGIN.
_BEGIN: Final = "gullak_begin"
_BEHIND_THE_WALL: Final = SQL(
    "SELECT set_config('role', 'gullak_api', true), set_config('gullak.business_id', {}, true)"
)


def make_engine(config: Settings, *, kept: int = 3, extra: int = 2) -> Engine:
    """Return an engine whose transactions carry the timeouts of the settings.

    A pooler such as PgBouncer gives each transaction another session, so nothing outlives one:
    limits are set in the round trip of BEGIN, and no statement is prepared on the server.
    `pool_pre_ping`: after a restart of Postgres the pool would hand out dead connections.
    `kept` connections stay open; `extra` ones are closed after use. Three, because a drain holds
    the lock of its shard on one, writes a batch on another, and prepares the next on the third.
    """
    engine = create_engine(
        config.sqlalchemy_url(),
        execution_options={VAULT: Vault(config.secret_key_list())},
        pool_size=kept,
        max_overflow=extra,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            # The driver sends no BEGIN of its own: `_begin` does.
            "autocommit": True,
            "prepare_threshold": None,
            "connect_timeout": 5,
            "application_name": "gullak",
        },
    )
    limits = _limits(config)

    @event.listens_for(engine, "begin")
    def _begin(conn: Connection) -> None:
        first, *more = conn.get_execution_options().get(_BEGIN, ("BEGIN",))
        statements = "; ".join((first, limits, *more))
        conn.exec_driver_sql(statements, execution_options={"no_parameters": True})

    return engine


def _limits(config: Settings) -> str:
    return "; ".join(
        f"SET LOCAL {name} = {value}"
        for name, value in (
            ("statement_timeout", config.statement_timeout_ms),
            ("lock_timeout", config.lock_timeout_ms),
            ("idle_in_transaction_session_timeout", config.idle_in_transaction_timeout_ms),
            ("random_page_cost", _RANDOM_PAGE_COST),
            ("timezone", "'UTC'"),
        )
    )


class Sessions:
    """Transactions over one engine: commit when the block ends, roll back when it raises."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open one transaction."""
        with self.engine.begin() as conn:
            yield conn

    @contextmanager
    def tenant(self, business_id: BusinessId) -> Iterator[Connection]:
        """Open one transaction behind the wall: it sees rows of this business only.

        Role and business end with the transaction: a pooled connection takes neither to the next.
        """
        wall = _BEHIND_THE_WALL.format(Literal(business_id)).as_string()
        with self._begun("BEGIN", wall) as conn:
            yield conn

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Open one transaction for reading that sees a single moment and has no time limit."""
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ"
        with self._begun(begin, "SET LOCAL statement_timeout = 0") as conn:
            yield conn

    @contextmanager
    def _begun(self, *statements: str) -> Iterator[Connection]:
        """Open one transaction that begins with these statements; the limits follow the first."""
        with self.engine.connect() as plain:
            conn = plain.execution_options(**{_BEGIN: statements})
            with conn.begin():
                yield conn


def sessions() -> Sessions:
    """Return the sessions of this process. Each has its own: a connection survives no fork."""
    return _sessions_of(os.getpid())


@cache
def _sessions_of(_pid: int) -> Sessions:
    return Sessions(make_engine(settings()))
