"""Every setting, read once, here only. Units end the names; the reason stands with each default."""

import os
import sys
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal

import limits
from pydantic import (
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.sources import PydanticBaseSettingsSource
from sqlalchemy import URL

from metering.buffer.durability import Durability
from metering.vault import Vault
from worker.urls import (
    broker_url,
    check_broker_url,
    check_database_url,
    check_redis_url,
    sqlalchemy_url,
)

NO_LIMIT: Final = "none"
CONFIGURATION_EXIT: Final = 78  # EX_CONFIG
_CHECKS: Final = {
    "database_url": check_database_url,
    "redis_url": check_redis_url,
    "broker_url": check_broker_url,
}

Url = Annotated[SecretStr, PlainSerializer(lambda url: url.get_secret_value(), when_used="json")]


class Settings(BaseSettings):
    """The environment, checked. `DATABASE_URL`, `REDIS_URL`, `BROKER_URL`; the rest `GULLAK_…`."""

    model_config = SettingsConfigDict(env_prefix="GULLAK_", frozen=True, env_ignore_empty=True)

    # --- where things are -------------------------------------------------------------------
    # Postgres >= 15, as libpq writes it: postgresql://user:password@host:port/database.
    database_url: Url = Field(SecretStr(""), validation_alias="DATABASE_URL")
    # Redis >= 6.2 with noeviction: the usage buffer. redis://, rediss:// (TLS) or unix://.
    redis_url: Url = Field(SecretStr(""), validation_alias="REDIS_URL")
    # Celery's broker. Empty: the next database of the same Redis, because the shortest visibility
    # timeout of all applications on one broker database wins.
    broker_url: Url = Field(SecretStr(""), validation_alias="BROKER_URL")
    # Logs: JSON lines for machines, text for a terminal, `auto` by whether stderr is one.
    log_format: Literal["auto", "json", "text"] = "auto"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    # Where the worker serves /metrics; 0: nowhere, because a port is the operator's to give.
    metrics_port: int = Field(0, ge=0, le=65535)
    # Where the worker's processes leave their counters for /metrics; `gullak up` makes a folder in
    # its data directory. The name is the one that prometheus_client reads itself, on import.
    metrics_dir: Path | None = Field(None, validation_alias="PROMETHEUS_MULTIPROC_DIR")
    # A file that a consuming worker, and a publishing beat, touches every second: its readiness
    # for the supervisor and its health check for a container. Empty: none.
    alive_file: Path | None = None

    # --- money ------------------------------------------------------------------------------
    # ISO 4217 code -> decimals of its minor unit. The first is the default billing currency.
    currencies: dict[str, int] = {"USD": 2, "INR": 2}

    # --- accept and buffer ------------------------------------------------------------------
    # Streams of the buffer: the most drains that can run at once. Changing it moves customers
    # between shards, so do it with an empty buffer.
    shards: int = Field(16, ge=1, le=256)
    # everysec: a crash of the Redis host may lose a second; strict: an answer means that the usage
    # is on the disk, and there is none where Redis cannot promise that; strict_unchecked: the same
    # without asking, for `appendfsync always` on a server that does not tell its CONFIG.
    durability: Durability = "everysec"
    # Above either mark new events are refused. 5 million events are a quarter of an hour at the
    # rate that the bench asks for; 1 GiB is half of a small Redis.
    high_water_events: int = Field(5_000_000, ge=1)
    high_water_bytes: int = Field(1 << 30, ge=1 << 20)
    # How old and how early an event may be: late batches of a month; clocks that run ahead.
    event_age_max_s: int = Field(35 * 86_400, ge=60)
    event_ahead_max_s: int = Field(300, ge=0)
    # Seconds until Redis counts as away: an ingest answers within 2 s.
    redis_timeout_s: float = Field(1.5, gt=0)

    # --- debit ------------------------------------------------------------------------------
    # Events of one batch: one transaction. Larger spreads the cost per wallet, smaller holds wallet
    # locks for less time. Only a backlog fills one: 40,000 events of a shard take about 0.6 s, and
    # with 20,000 wallets drain a third faster than batches of 20,000.
    batch_events: int = Field(40_000, ge=1, le=100_000)
    # How long one drain works before it lets others go: tasks stay far below 10 s.
    drain_slice_s: float = Field(3.0, gt=0)
    # Rows of usage are dropped by whole days after this; the event keys stay for ever.
    usage_retention_days: int = Field(90, ge=1)
    # Daily partitions made ahead: how long the maintenance task may be absent.
    usage_partitions_ahead_days: int = Field(14, ge=2)
    # Backlog but nothing drained for this long: the worker exits, to be started anew.
    watchdog_s: float = Field(45.0, ge=5)

    # --- purchase ---------------------------------------------------------------------------
    # How many days before its end credit is told of: time to use it, and a last reminder.
    expiring_notice_days: tuple[Annotated[int, Field(ge=1, le=365)], ...] = (7, 1)
    # How long a checkout waits for its payment with credit reserved; within what the next setting
    # leaves for stopping it.
    checkout_ttl_s: int = Field(3600, ge=60, le=79_200)
    # How long a charge is asked for again that nobody answered for, before it is parked: providers
    # keep an idempotency key for 24 h, and after that the same charge would be another one.
    charge_ask_for_s: int = Field(82_800, ge=60, le=82_800)
    # How long a charge that a provider has taken on is looked up, before it is parked: debits of
    # bank accounts take days.
    charge_look_up_for_s: int = Field(7 * 86_400, ge=60)
    # How long a provider may take to answer: a charge takes it a second or two. A call is four such
    # exchanges at most, which have to end before the task's time does.
    charge_timeout_ms: int = Field(10_000, ge=100, le=10_000)
    # Seconds between two attempts at a charge: the first wait, doubled up to the last.
    charge_retry_s: int = Field(5, ge=1)
    charge_retry_max_s: int = Field(900, ge=1)
    # Seconds after a declined top-up, doubled with each decline up to a day: a card without money
    # seldom has some minutes later.
    top_up_retry_s: int = Field(3600, ge=1, le=86_400)

    # --- webhook ----------------------------------------------------------------------------
    # Waits between attempts; after the last comes the dead letter. The contract's schedule.
    webhook_retry_s: tuple[int, ...] = (5, 300, 1800, 7200, 18_000, 36_000, 36_000)
    # How long a receiver may take, from the connection to the end of its answer: the contract's.
    webhook_timeout_s: float = Field(15.0, gt=0, le=30)
    # Private, loopback and link-local receivers are refused, unless the first of these allows them
    # all, or the second those on this machine, as `gullak up` does. Both are for workers and API.
    webhook_allow_private: bool = False
    webhook_allow_loopback: bool = False
    # An endpoint that failed this many times in a row, over at least a day, is disabled.
    webhook_disable_after: int = Field(50, ge=1)

    # --- api --------------------------------------------------------------------------------
    # Requests that one API process works on at the same time, and its Postgres connections.
    api_threads: int = Field(16, ge=1, le=200)
    # A request of 1,000 events with the longest metadata is 30 MiB; usual ones are 0.3 MiB.
    api_body_bytes_max: int = Field(8 << 20, ge=1 << 10)
    # Requests of one API key, over all API processes: `1000/second`, `20000/minute`; none: any
    # number. A loop gone wild is stopped, and no honest producer, who sends batches, comes near.
    api_rate_limit: str = "1000/second"
    # How long a key is trusted without another look: the longest that a revoked one still works.
    api_key_ttl_s: float = Field(5.0, ge=0)
    # How long known keys may go on ingesting while Postgres is away: events are kept in Redis.
    api_key_stale_s: float = Field(900.0, ge=0)
    # Minor units of USD for one minor unit of a currency, for `total_balance_usd` only: nothing is
    # ever spent by a rate. A currency without one is left out of the total.
    usd_rates: dict[str, Annotated[Decimal, Field(gt=0)]] = {}
    # The day of those rates, told with the total.
    usd_rates_date: date | None = None

    # --- Postgres sessions ------------------------------------------------------------------
    # One statement, one wait for a lock, one pause inside a transaction: each below the task's soft
    # limit, so that Postgres ends what hangs and a frozen worker's locks, before Celery has to.
    statement_timeout_ms: int = Field(30_000, ge=100)
    lock_timeout_ms: int = Field(10_000, ge=100)
    idle_in_transaction_timeout_ms: int = Field(30_000, ge=100)

    # --- retention --------------------------------------------------------------------------
    # Days that webhooks are kept with their deliveries and attempts: time to look things up, and
    # far longer than any of them is tried.
    webhook_retention_days: int = Field(90, ge=7)
    # Days after its processing that the body of a provider's event is kept: names and addresses of
    # payers stand in it, and disputes come up to 120 days after a payment. The row stays.
    provider_body_retention_days: int = Field(180, ge=1)
    # Days that dead letters are kept after they were sent again; those that wait are kept for ever.
    refused_retention_days: int = Field(90, ge=1)

    # --- secrets ----------------------------------------------------------------------------
    # Keys that seal the secrets in the database, comma separated: the first seals, all of them
    # open. `gullak secrets new-key` makes one. Empty: secrets are stored as they are, because a key
    # that is lost with the machine makes them useless; `gullak up` keeps one beside its database.
    secret_keys: SecretStr = SecretStr("")

    # --- tests ------------------------------------------------------------------------------
    # A folder of points at which a process kills itself: fault tests only. See failpoint.py.
    failpoint_dir: Path | None = None

    @field_validator("currencies")
    @classmethod
    def _check_currencies(cls, currencies: dict[str, int]) -> dict[str, int]:
        for code, decimals in currencies.items():
            if not (len(code) == 3 and code.isascii() and code.isupper() and 0 <= decimals <= 4):  # noqa: PLR2004
                raise ValueError(f"{code}:{decimals} is not an ISO 4217 code with 0 to 4 decimals")
        if not currencies:
            raise ValueError("at least one currency is needed")
        return currencies

    @field_validator("api_rate_limit")
    @classmethod
    def _check_rate_limit(cls, limit: str) -> str:
        if limit != NO_LIMIT:
            limits.parse(limit)
        return limit

    @field_validator("database_url", "redis_url", "broker_url")
    @classmethod
    def _check_url(cls, url: SecretStr, info: ValidationInfo) -> SecretStr:
        if url.get_secret_value():
            _CHECKS[str(info.field_name)](url.get_secret_value())
        return url

    @field_validator("secret_keys")
    @classmethod
    def _check_secret_keys(cls, keys: SecretStr) -> SecretStr:
        try:
            Vault(_listed(keys))
        except ValueError:
            raise ValueError("a key is none; `gullak secrets new-key` makes one") from None
        return keys

    def secret_key_list(self) -> list[str]:
        """Return the keys that seal secrets, the one in use first."""
        return _listed(self.secret_keys)

    def sqlalchemy_url(self) -> URL:
        """Return the database URL with SQLAlchemy's name for psycopg 3."""
        return sqlalchemy_url(self.database_url.get_secret_value())

    def celery_broker_url(self) -> str:
        """Return the broker's URL: given, or the database after the buffer's."""
        return broker_url(self.broker_url.get_secret_value(), self.redis_url.get_secret_value())


def _listed(keys: SecretStr) -> list[str]:
    return [key.strip() for key in keys.get_secret_value().split(",") if key.strip()]


@cache
def settings() -> Settings:
    """Return the settings of this process."""
    return Settings()


def settings_or_exit() -> Settings:
    """Return the settings of this process; end it with one line if they cannot be."""
    try:
        return settings()
    except ValidationError as error:
        sys.stderr.write(f"gullak: {problems_of(error)}\n")
        sys.exit(CONFIGURATION_EXIT)


def problems_of(error: ValidationError) -> str:
    """Return names and reasons only: the refused value may be a secret."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors()
    )


class _GivenSettings(Settings):
    """Settings that look at their arguments only."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *_others: PydanticBaseSettingsSource,
        **_named: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def settings_from(variables: Mapping[str, str]) -> Settings:
    """Return the settings that a process with this environment would have."""
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in variables.items() if value}
    return _GivenSettings(**source())


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of this process for a child, with `extra` on top."""
    return {**os.environ, **extra}
