"""The addresses of the servers: checked at the start, and rewritten for SQLAlchemy and Celery.

The text of an error names no part of an address, which may be a secret.
"""

from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL

from metering.buffer.stream import connect

BROKER_DATABASE_OFFSET: Final = 1
_REDIS: Final = frozenset({"redis", "rediss", "unix"})
_BROKERS: Final = _REDIS | {"redis+socket", "sentinel", "amqp", "amqps", "pyamqp"}
_ESCAPE: Final = "is no URL: a special character of a password must be written as %XX (# as %23)"
_DATABASE_FORM: Final = "must be a URL as libpq reads it: postgresql://user:password@host:port/name"


def check_redis_url(url: str) -> str:
    """Return the address of the buffer's Redis.

    Raises: ValueError if it is none.
    """
    scheme = url.partition("://")[0]
    if scheme not in _REDIS:
        what = "Sentinel addresses are not supported; it" if "sentinel" in scheme else "it"
        raise ValueError(f"{what} must begin with redis://, rediss:// or unix://")
    _database_of(_split(url))
    connect(url, timeout_s=1).close()  # nothing is connected
    return url


def check_broker_url(url: str) -> str:
    """Return the address of the broker.

    Raises: ValueError if it is none.
    """
    scheme = url.partition("://")[0]
    if scheme not in _BROKERS:
        raise ValueError(f"it must begin with one of {', '.join(sorted(_BROKERS))}")
    return check_redis_url(url) if scheme in _REDIS else url


def check_database_url(url: str) -> str:
    """Return the address of Postgres.

    Raises: ValueError if libpq cannot read it.
    """
    if url.partition("://")[0] not in {"postgresql", "postgres"}:
        raise ValueError(_DATABASE_FORM)
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise ValueError(_DATABASE_FORM) from error  # its own text may show the password
    return url


def sqlalchemy_url(database_url: str) -> URL:
    """Return the address for SQLAlchemy. Only libpq takes it apart."""
    parameters = {name: str(value) for name, value in conninfo_to_dict(database_url).items()}
    return URL.create(
        "postgresql+psycopg",
        username=parameters.pop("user", None),
        password=parameters.pop("password", None),
        database=parameters.pop("dbname", None),
        query=parameters,  # also the host, which may be a folder or several hosts
    )


def broker_url(given: str, redis_url: str) -> str:
    """Return the address for Celery: the given one, or the database after the buffer's.

    Celery has another scheme for sockets than the client of Redis, and checks certificates only if
    the address asks for it.
    """
    if not given:
        return _for_celery(_split(redis_url), BROKER_DATABASE_OFFSET) if redis_url else ""
    is_of_redis = given.partition("://")[0] in _REDIS
    return _for_celery(_split(given), 0) if is_of_redis else given


def _for_celery(parts: SplitResult, offset: int) -> str:
    database = _database_of(parts) + offset
    query = {name: value for name, value in parse_qsl(parts.query) if name != "db"}
    if parts.scheme == "unix":
        user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return f"redis+socket://{user}{quote(parts.path)}?virtual_host={database}"
    if parts.scheme == "rediss":
        query.setdefault("ssl_cert_reqs", "required")
    return parts._replace(path=f"/{database}", query=urlencode(query)).geturl()


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is no number; its text shows the value
    except ValueError as error:
        raise ValueError(_ESCAPE) from error
    if parts.fragment:
        raise ValueError(_ESCAPE)
    return parts


def _database_of(parts: SplitResult) -> int:
    """Return the number of the Redis database."""
    named = dict(parse_qsl(parts.query)).get("db")
    text = named if named is not None or parts.scheme == "unix" else parts.path.strip("/")
    if not text:
        return 0
    if not text.isdigit():
        raise ValueError("the database of Redis must be a number")
    return int(text)
