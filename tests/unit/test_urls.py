"""Addresses as operators write them become the forms of each library, or one clear error."""

import ssl
from typing import Any

import pytest
from celery import Celery
from kombu.transport.redis import Channel
from psycopg.conninfo import conninfo_to_dict
from pydantic import ValidationError
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from metering.buffer.stream import connect
from worker.settings import problems_of, settings_from

BROKERS = [
    ("redis://:pw@h:1/0", "redis://:pw@h:1/1"),
    ("redis://h:1/4", "redis://h:1/5"),
    ("redis://h:1", "redis://h:1/1"),
    ("redis://h:1/", "redis://h:1/1"),
    ("redis://user:p%40w%2F@h:1/0", "redis://user:p%40w%2F@h:1/1"),
    ("redis://[::1]:6379/2", "redis://[::1]:6379/3"),
    ("redis://h:1?db=3", "redis://h:1/4"),
    ("rediss://h:1/0?ssl_cert_reqs=required", "rediss://h:1/1?ssl_cert_reqs=required"),
    ("rediss://u:pw@h:1/0?ssl_cert_reqs=none", "rediss://u:pw@h:1/1?ssl_cert_reqs=none"),
    ("rediss://h:1", "rediss://h:1/1?ssl_cert_reqs=required"),
    (
        "rediss://h:1/0?ssl_ca_certs=/etc/ca.pem",
        "rediss://h:1/1?ssl_ca_certs=%2Fetc%2Fca.pem&ssl_cert_reqs=required",
    ),
    ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=1"),
    ("unix://u:pw@/run/redis.sock?db=2", "redis+socket://u:pw@/run/redis.sock?virtual_host=3"),
]


@pytest.mark.parametrize(("redis", "broker"), BROKERS)
def test_the_broker_takes_the_next_database_and_keeps_the_rest(redis: str, broker: str) -> None:
    assert settings_from({"REDIS_URL": redis}).celery_broker_url() == broker


@pytest.mark.parametrize("redis", [redis for redis, _ in BROKERS])
def test_celery_and_the_client_of_the_buffer_go_to_the_same_server(redis: str) -> None:
    """Celery uses the next database, with the same user and the same check of the certificate."""
    ours = connect(redis, timeout_s=1).connection_pool.connection_kwargs
    theirs = celery_parameters(settings_from({"REDIS_URL": redis}).celery_broker_url())

    assert theirs["db"] == ours.get("db", 0) + 1
    for name in ("path", "host", "port", "username", "password", "ssl_ca_certs"):
        assert name not in ours or theirs[name] == ours[name], name
    if redis.startswith("rediss"):
        wanted = {"none": ssl.CERT_NONE, "required": ssl.CERT_REQUIRED}
        assert theirs["ssl_cert_reqs"] == wanted[ours.get("ssl_cert_reqs", "required")]


def celery_parameters(broker: str) -> dict[str, Any]:
    """The parameters with which Celery's transport connects."""
    channel = Channel.__new__(Channel)
    transport: Any = Celery("of-a-test", broker=broker).connection_for_read().transport
    channel.connection = transport
    return dict(channel._connparams())  # type: ignore[attr-defined]


BAD = [
    ("REDIS_URL", "sentinel://h:26379/0", "Sentinel addresses are not supported"),
    ("REDIS_URL", "redis+sentinel://:hidden@h:26379/mymaster/0", "Sentinel addresses are not"),
    ("REDIS_URL", "http://h:6379/0", "must begin with redis://, rediss:// or unix://"),
    ("REDIS_URL", "h:6379", "must begin with redis://"),
    ("REDIS_URL", "redis://:hid#den@h:6379/0", "is no URL: a special character of a password"),
    ("REDIS_URL", "redis://:hid/den@h:6379/0", "is no URL"),
    ("REDIS_URL", "redis://:hidden@h:99999/0", "is no URL"),
    ("REDIS_URL", "redis://:hidden@h/first", "database of Redis must be a number"),
    ("REDIS_URL", "rediss://:hidden@h/0?ssl_cert_reqs=maybe", "cannot be used"),
    ("REDIS_URL", "redis://:hidden@h/0?nonsense=1", "nonsense"),
    ("REDIS_URL", "redis://:hidden@h/0?ssl_ca_certs=x", "ssl_ca_certs"),
    ("BROKER_URL", "http://h", "it must begin with one of"),
    ("BROKER_URL", "redis://:hidden@h/first", "database of Redis must be a number"),
    ("DATABASE_URL", "mysql://u:hidden@h/d", "postgresql://user:password@host:port/name"),
    ("DATABASE_URL", "postgresql+psycopg://u:hidden@h/d", "as libpq reads it"),
    ("DATABASE_URL", "postgresql://u:hidden@h/d?nonsense=1", "as libpq reads it"),
    ("DATABASE_URL", "postgresql://u:hid%zz@h/d", "as libpq reads it"),
]


@pytest.mark.parametrize(("name", "url", "message"), BAD)
def test_a_bad_address_is_one_error_that_shows_no_secret(name: str, url: str, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        settings_from({name: url})

    text = problems_of(refused.value)
    assert text.startswith(f"{name}: ")
    assert message in text
    assert "hid" not in text
    assert "\n" not in text


GIVEN_BROKERS = [
    ("redis://b/7", "redis://b/7"),
    ("rediss://b/7", "rediss://b/7?ssl_cert_reqs=required"),
    ("unix:///run/b.sock?db=7", "redis+socket:///run/b.sock?virtual_host=7"),
    ("amqp://u:p@b//", "amqp://u:p@b//"),
    ("sentinel://s1:26379;sentinel://s2:26379", "sentinel://s1:26379;sentinel://s2:26379"),
]


@pytest.mark.parametrize(("given", "broker"), GIVEN_BROKERS)
def test_a_broker_of_its_own_keeps_its_database(given: str, broker: str) -> None:
    variables = {"REDIS_URL": "redis://h/0", "BROKER_URL": given}

    assert settings_from(variables).celery_broker_url() == broker


DATABASES = [
    "postgresql://u:p%40w@h:5433/d",
    "postgres://u@h/d",
    "postgresql://u:p@h/d?sslmode=require&connect_timeout=3",
    "postgresql:///d?host=/var/run/postgresql",
    "postgresql://u@%2Fvar%2Frun%2Fpostgresql/d",
    "postgresql://u:p@h1:5432,h2:5433/d?target_session_attrs=read-write",
    "postgresql://u:p@[::1]:5432/d",
]


@pytest.mark.parametrize("url", DATABASES)
def test_sessions_connect_as_libpq_reads_the_address(url: str) -> None:
    (_, parameters) = PGDialect_psycopg().create_connect_args(
        settings_from({"DATABASE_URL": url}).sqlalchemy_url()
    )

    assert {name: str(value) for name, value in parameters.items()} == conninfo_to_dict(url)
