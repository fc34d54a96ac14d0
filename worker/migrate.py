"""Migrations, and the wall between tenants: one runner at a time, one transaction, short waits."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import as_file, files
from typing import Final

import structlog
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from metering.errors import ConfigurationError
from metering.ledger.wallets import open_missing_wallets
from metering.migrations.wall import make_role, raise_wall
from metering.usage.partitions import maintain_partitions
from metering.vault.rotate import check_secrets
from worker.session import make_engine
from worker.settings import Settings

log = structlog.get_logger("gullak.migrate")

# An advisory lock that all runners of migrations share. Any constant does.
MIGRATION_LOCK: Final = 0x67756C6C616B
STATEMENT_TIMEOUT_S: Final = 60
# Old code runs meanwhile. A migration that waits for a lock blocks it, so it fails and tries again.
LOCK_TIMEOUT_S: Final = 4


def migrate(database: Engine | Connection) -> None:
    """Upgrade to the newest revision, and raise the wall of tenants.

    With an engine it is one transaction. With a connection it joins the open transaction.

    Raises: DBAPIError, and nothing was changed. Try again if `metering.db.is_server_fault` says so:
    another session held a lock for too long.
    """
    if isinstance(database, Connection):
        _upgrade(database)
        return
    with database.begin() as conn:
        _upgrade(conn)


def migrate_database(config: Settings) -> None:
    """Upgrade the database of these settings, over a connection of its own.

    Raises: ConfigurationError if there is no database, it does not answer or refuses, or its
    secrets cannot be opened. Nothing was changed then.
    """
    if not config.database_url.get_secret_value():
        raise ConfigurationError("DATABASE_URL is not set")
    engine = make_engine(config)
    try:
        with engine.begin() as conn:
            migrate(conn)
            _prepare(conn, config)
            check_secrets(conn)
    except DBAPIError as error:
        raise ConfigurationError(f"the database was not migrated: {error.orig}") from error
    finally:
        engine.dispose()
    if not config.secret_key_list():
        log.warning("secrets are stored in clear", instead="set GULLAK_SECRET_KEYS")


@cache
def newest_revision() -> str:
    """Return the revision of the schema that this version works with."""
    with _scripts() as config:
        (newest,) = ScriptDirectory.from_config(config).get_heads()
    return newest


@contextmanager
def _scripts() -> Iterator[Config]:
    with as_file(files("metering") / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        yield config


def _upgrade(conn: Connection) -> None:
    # The advisory lock ends with the transaction: a runner that is killed blocks nobody. Another
    # runner may take longer than the lock timeout, so only the statement timeout bounds the wait.
    conn.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S}s'"))
    conn.execute(text("SET LOCAL lock_timeout = 0"))
    conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    conn.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
    with _scripts() as config:
        config.attributes["connection"] = conn
        make_role(conn)
        command.upgrade(config, "head")
        raise_wall(conn)


def _prepare(conn: Connection, config: Settings) -> None:
    """Make what the settings ask for: wallets of a new currency, and partitions."""
    open_missing_wallets(conn, tuple(config.currencies))
    maintain_partitions(
        conn,
        ahead_days=config.usage_partitions_ahead_days,
        retention_days=config.usage_retention_days,
    )
