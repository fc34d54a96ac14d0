"""The servers that a command uses: those of the environment, or of a stack in a data directory."""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psycopg
from psycopg import errors as sqlstate
from sqlalchemy import Connection

from metering.db import DATABASE_ERRORS, cause_of, is_server_fault
from metering.errors import (
    BufferUnavailableError,
    ConfigurationError,
    FieldProblem,
    GullakError,
    InvalidInputError,
    NotFoundError,
    UnsupportedCurrencyError,
)
from metering.ids import BusinessId, Currency
from metering.ledger.businesses import list_businesses
from worker.local.files import DEFAULT_DATA_DIR, STACK_DEFAULTS, read_in_use
from worker.session import Sessions, make_engine
from worker.settings import Settings, environment, settings_from

if TYPE_CHECKING:
    from metering.buffer.stream import UsageBuffer

START_HINT: Final = "start one with `gullak up`, or set DATABASE_URL and REDIS_URL"


class Target:
    """The settings, transactions and buffer of one command. Redis is connected on first use."""

    def __init__(self, config: Settings) -> None:
        self.settings = config
        self._engine = make_engine(config)
        self._sessions = Sessions(self._engine)
        self.transaction = self._sessions.transaction
        self.snapshot = self._sessions.snapshot

    @cached_property
    def buffer(self) -> "UsageBuffer":
        """The usage buffer. Raises ConfigurationError if REDIS_URL is not set."""
        # Imported late: most commands work on Postgres alone.
        from metering.buffer.stream import agreed_shards  # noqa: PLC0415
        from worker.context import connect_buffer, open_buffer  # noqa: PLC0415

        if not self.settings.redis_url.get_secret_value():
            raise ConfigurationError(f"REDIS_URL is not set: {START_HINT}")
        # The workers may have another GULLAK_SHARDS than this shell: Redis holds what they use.
        with closing(connect_buffer(self.settings)) as redis:
            agreed = agreed_shards(redis) or self.settings.shards
        return open_buffer(self.settings.model_copy(update={"shards": agreed}))

    @property
    def currencies(self) -> tuple[str, ...]:
        """The configured currencies."""
        return tuple(self.settings.currencies)

    def checked_currency(self, code: str) -> Currency:
        """Return a currency. Raises UnsupportedCurrencyError if it is not configured."""
        if code not in self.currencies:
            raise UnsupportedCurrencyError(code, self.currencies)
        return Currency(code)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        if "buffer" in self.__dict__:
            self.buffer.redis.close()


@contextmanager
def open_target(data_dir: Path | None) -> Iterator[Target]:
    """Open the servers of `data_dir`, or of the environment.

    Raises:
        ConfigurationError: no server is named, it does not answer, or it has no tables.

    """
    config = settings_of(data_dir)
    target = Target(config)
    try:
        yield target
    except DATABASE_ERRORS as error:
        raise _explained(error, config) from error
    except Exception as error:
        if not _is_redis_away(error):
            raise
        place = _place(config.redis_url.get_secret_value())
        raise ConfigurationError(f"Redis at {place} does not answer: {error}") from error
    finally:
        target.close()


def _is_redis_away(error: Exception) -> bool:
    from redis.exceptions import RedisError  # noqa: PLC0415  # needed by few commands

    return isinstance(error, RedisError | BufferUnavailableError)


def settings_of(data_dir: Path | None) -> Settings:
    """Return the settings of a command.

    A data directory goes before the environment if it was named; the default one goes after it.

    Raises:
        ConfigurationError: neither names a database.

    """
    given = environment()
    found = _found_in(DEFAULT_DATA_DIR if data_dir is None else data_dir)
    if data_dir is not None and not found:
        raise ConfigurationError(f"no stack was ever started in {data_dir}: {START_HINT}")
    if (
        data_dir is None
        and given.get("DATABASE_URL", database := found.get("DATABASE_URL")) != database
    ):
        found = {}  # the key that seals the secrets of one database must not seal another's
    config = settings_from({**found, **given} if data_dir is None else {**given, **found})
    if not config.database_url.get_secret_value():
        raise ConfigurationError(
            f"DATABASE_URL is not set and there is no stack in {DEFAULT_DATA_DIR}: {START_HINT}"
        )
    return config


def _found_in(data_dir: Path) -> Mapping[str, str]:
    """Return the variables of the last stack in `data_dir`; none if there never was one."""
    if in_use := read_in_use(data_dir):
        return in_use
    path = data_dir / "stack.json"
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    from worker.local.embedded import Credentials  # noqa: PLC0415  # only if a stack was here

    try:
        credentials = Credentials(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from error
    urls = {"DATABASE_URL": credentials.database_url, "REDIS_URL": credentials.redis_url}
    return STACK_DEFAULTS | urls


def _explained(error: Exception, config: Settings) -> GullakError:
    """Return one line that the user can act on, without SQL, parameters or passwords."""
    cause = cause_of(error)
    if isinstance(cause, sqlstate.UndefinedTable | sqlstate.UndefinedColumn):
        return ConfigurationError("the database has not the tables of this version: gullak migrate")
    message = cause.diag.message_primary if isinstance(cause, psycopg.Error) else None
    if message is None and is_server_fault(error):
        place = _place(config.database_url.get_secret_value())
        return ConfigurationError(f"Postgres at {place} does not answer: {START_HINT}")
    return GullakError(f"Postgres refused: {message or type(cause).__name__}")


def _place(url: str) -> str:
    """Return host, port and database of a URL: never its user and password."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2] or 'the local socket'}{parts.path}"


def business_of(conn: Connection, name: str | None) -> BusinessId:
    """Return the business that was named, or the only one.

    Raises:
        NotFoundError: there is no such business.
        InvalidInputError: none was named, and there is not exactly one.

    """
    existing = [business.business_id for business in list_businesses(conn)]
    if name is None:
        if len(existing) == 1:
            return existing[0]
        reason = f"there are {len(existing)}: name one with --business"
        raise InvalidInputError(FieldProblem("business", reason))
    if name not in existing:
        raise NotFoundError("business", name)
    return BusinessId(name)
