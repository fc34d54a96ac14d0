"""Every setting, read once and only here. Units end the names; a comment gives each a reason."""

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
    # Postgres ≥ 15, as libpq writes it: postgresql://user:password@host:port/database.
    database_url: Url = Field(SecretStr(""), validation_alias="DATABASE_URL")
    # The usage buffer: Redis ≥ 6.2 or Valkey, with noeviction; redis://, rediss:// (TLS), unix://.
    redis_url: Url = Field(SecretStr(""), validation_alias="REDIS_URL")
    # The broker of Celery. Empty: the next database of the same Redis. Share it with no other
    # application: the shortest visibility timeout of all of them would count.
    broker_url: Url = Field(SecretStr(""), validation_alias="BROKER_URL")
    # Logs: JSON lines for machines, text for a terminal. `auto` takes text if stderr is a terminal.
    log_format: Literal["auto", "json", "text"] = "auto"
    # The least level that is logged. DEBUG also shows what the libraries log.
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    # The port on which a worker serves /metrics, on all interfaces. 0: none, because no port is
    # free on every machine.
    metrics_port: int = Field(0, ge=0, le=65535)
    # The folder in which processes leave their counters for /metrics. `gullak up` makes one in its
    # data directory. prometheus_client itself reads the variable of this name.
    metrics_dir: Path | None = Field(None, validation_alias="PROMETHEUS_MULTIPROC_DIR")
    # A file that a worker touches every second while it takes messages, and beat while it sends
    # them: the sign of life for a supervisor or a health check. Empty: none.
    alive_file: Path | None = None

    # --- money ------------------------------------------------------------------------------
    # ISO 4217 code -> decimals of its minor unit. The first is the default billing currency.
    currencies: dict[str, int] = {"USD": 2, "INR": 2}

    # --- accept and buffer ------------------------------------------------------------------
    # The number of shards: as many drains can run at once. A change moves customers between
    # shards, so change it only with an empty buffer.
    shards: int = Field(16, ge=1, le=256)
    # everysec: a crash of the Redis host may lose the last second or two. strict: an answer means
    # that the usage is on the disk, and usage is refused if Redis cannot promise that.
    # strict_unchecked: the same without a check, for a Redis with `appendfsync always` that hides
    # its CONFIG.
    durability: Durability = "everysec"
    # New events are refused while this many are buffered. 5 million are a quarter of an hour at the
    # rate that `make bench` asks for.
    high_water_events: int = Field(5_000_000, ge=1)
    # New events are refused while this many bytes are buffered. 1 GiB is half of a small Redis.
    high_water_bytes: int = Field(1 << 30, ge=1 << 20)
    # The oldest an event may be when it is sent: 35 days take the late batches of a month.
    event_age_max_s: int = Field(35 * 86_400, ge=60)
    # How far ahead of our clock the time of an event may be: the clocks of producers differ.
    event_ahead_max_s: int = Field(300, ge=0)
    # Redis counts as away after this time. A call of /events/ingest answers within 2 s.
    redis_timeout_s: float = Field(1.5, gt=0)

    # --- debit ------------------------------------------------------------------------------
    # Events of a batch, which is one transaction. A larger batch costs less per wallet, a smaller
    # one locks wallets for less time. Only a backlog fills one: 40,000 events of a shard take about
    # 0.6 s, and with 20,000 wallets drain a third faster than batches of 20,000.
    batch_events: int = Field(40_000, ge=1, le=100_000)
    # A drain lets other tasks run after this time: a task stays far below 10 s.
    drain_slice_s: float = Field(3.0, gt=0)
    # Days that usage events are kept. They are dropped by whole days; event keys stay for ever.
    usage_retention_days: int = Field(90, ge=1)
    # Days for which partitions are made ahead: the task that makes them may fail for as long.
    usage_partitions_ahead_days: int = Field(14, ge=2)
    # A worker exits, to be restarted, if there is a backlog and nothing is drained for this time.
    watchdog_s: float = Field(45.0, ge=5)

    # --- purchase ---------------------------------------------------------------------------
    # Days before its expiry at which credit is announced: time to use it, and a last reminder.
    expiring_notice_days: tuple[Annotated[int, Field(ge=1, le=365)], ...] = (7, 1)
    # A checkout waits this long for its payment, with credit reserved. It must end before
    # GULLAK_CHARGE_ASK_FOR_S does, which leaves time to stop its charge.
    checkout_ttl_s: int = Field(3600, ge=60, le=79_200)
    # A charge without an answer is asked for again for this time, and then parked. Providers keep
    # an idempotency key for 24 h; after that the same request would be another charge.
    charge_ask_for_s: int = Field(82_800, ge=60, le=82_800)
    # A charge that the provider has accepted is looked up for this time, and then parked: debits of
    # bank accounts take days.
    charge_look_up_for_s: int = Field(7 * 86_400, ge=60)
    # The longest answer of a provider; a charge usually takes a second or two. A call makes at most
    # four such requests, which must end before the time limit of the task.
    charge_timeout_ms: int = Field(10_000, ge=100, le=10_000)
    # The wait after the first attempt at a charge. Each further wait is twice as long.
    charge_retry_s: int = Field(5, ge=1)
    # The longest wait between two attempts at a charge.
    charge_retry_max_s: int = Field(900, ge=1)
    # The wait after a declined top-up. It doubles with each decline, up to a day: a card without
    # money seldom has some minutes later.
    top_up_retry_s: int = Field(3600, ge=1, le=86_400)

    # --- webhook ----------------------------------------------------------------------------
    # The waits between attempts; after the last one the delivery is a dead letter. They leave a
    # receiver that is down a day to come back.
    webhook_retry_s: tuple[int, ...] = (5, 300, 1800, 7200, 18_000, 36_000, 36_000)
    # The longest that a receiver may take, from the connection to the end of its answer.
    webhook_timeout_s: float = Field(15.0, gt=0, le=30)
    # Webhooks may go to private, loopback and link-local addresses. Otherwise those are refused: a
    # tenant must not reach the network of the operator. For workers and API.
    webhook_allow_private: bool = False
    # Webhooks may go to this machine, as `gullak up` allows. For workers and API.
    webhook_allow_loopback: bool = False
    # An endpoint is disabled after this many failures in a row over at least a day.
    webhook_disable_after: int = Field(50, ge=1)

    # --- api --------------------------------------------------------------------------------
    # Requests that one API process works on at once, and its connections to Postgres.
    api_threads: int = Field(16, ge=1, le=200)
    # The largest body of a request. 1,000 events are usually 0.3 MiB; with the longest metadata
    # they are 30 MiB.
    api_body_bytes_max: int = Field(8 << 20, ge=1 << 10)
    # Requests of one API key, over all API processes, such as `1000/second` or `20000/minute`;
    # `none` allows any number. It stops a loop gone wild; producers of batches stay far below it.
    api_rate_limit: str = "1000/second"
    # A known key is trusted for this time, so a revoked key works no longer than that.
    api_key_ttl_s: float = Field(5.0, ge=0)
    # A known key may send events for this time while Postgres is away: events are kept in Redis.
    api_key_stale_s: float = Field(900.0, ge=0)
    # Minor units of USD for one minor unit of a currency, for `total_balance_usd` only: no money
    # moves by a rate. The total leaves out a currency without one.
    usd_rates: dict[str, Annotated[Decimal, Field(gt=0)]] = {}
    # The day of these rates, which is shown with the total.
    usd_rates_date: date | None = None

    # --- Postgres sessions ------------------------------------------------------------------
    # The longest statement. It is below the time limit of a task, so that Postgres ends what hangs
    # before Celery kills the worker.
    statement_timeout_ms: int = Field(30_000, ge=100)
    # The longest wait for a lock.
    lock_timeout_ms: int = Field(10_000, ge=100)
    # The longest pause in a transaction: Postgres then frees the locks of a worker that is frozen.
    idle_in_transaction_timeout_ms: int = Field(30_000, ge=100)

    # --- retention --------------------------------------------------------------------------
    # Days that webhooks are kept with their deliveries and attempts: far longer than they are
    # tried, so that they can be looked up.
    webhook_retention_days: int = Field(90, ge=7)
    # Days that the body of a provider's event is kept after it was processed. It holds names and
    # addresses of payers, and disputes come up to 120 days after a payment. The row stays.
    provider_body_retention_days: int = Field(180, ge=1)
    # Days that a refused event is kept after its replay. One that waits is kept for ever.
    refused_retention_days: int = Field(90, ge=1)

    # --- secrets ----------------------------------------------------------------------------
    # Keys that seal the secrets in the database, separated by commas: the first seals, all open.
    # `gullak secrets new-key` makes one. Empty: secrets are stored in clear, because a key that is
    # lost makes them useless. `gullak up` keeps a key beside its database.
    secret_keys: SecretStr = SecretStr("")

    # --- tests ------------------------------------------------------------------------------
    # A folder of points at which a process kills itself, for fault tests only: see `checkpoint_of`.
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
            raise ValueError("not a key; `gullak secrets new-key` makes one") from None
        return keys

    def secret_key_list(self) -> list[str]:
        """Return the keys that seal secrets, the one in use first."""
        return _listed(self.secret_keys)

    def sqlalchemy_url(self) -> URL:
        """Return the database URL with SQLAlchemy's name for psycopg 3."""
        return sqlalchemy_url(self.database_url.get_secret_value())

    def celery_broker_url(self) -> str:
        """Return the URL of the broker: the given one, or the database after the buffer's."""
        return broker_url(self.broker_url.get_secret_value(), self.redis_url.get_secret_value())


def _listed(keys: SecretStr) -> list[str]:
    return [key.strip() for key in keys.get_secret_value().split(",") if key.strip()]


@cache
def settings() -> Settings:
    """Return the settings of this process."""
    return Settings()


def settings_or_exit() -> Settings:
    """Return the settings of this process, or end it with one line if one of them is wrong."""
    try:
        return settings()
    except ValidationError as error:
        sys.stderr.write(f"gullak: {problems_of(error)}\n")
        sys.exit(CONFIGURATION_EXIT)


def problems_of(error: ValidationError) -> str:
    """Return names and reasons, and no value: it may be a secret."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors()
    )


class _GivenSettings(Settings):
    """Settings that read only their arguments."""

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
