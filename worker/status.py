"""The state of the installation in a few figures: for `gullak status` and for the metrics."""

from collections.abc import Mapping
from dataclasses import dataclass

from redis.exceptions import RedisError
from sqlalchemy import Connection

from metering.buffer.stream import UsageBuffer
from metering.errors import GullakError
from metering.ledger import statements as ledger
from metering.payment import statements as payment
from metering.usage import statements as usage
from metering.verify import statements as verify
from metering.webhook import statements as webhook
from metering.webhook.retry import ATTEMPTS_PER_ROUND


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffered:
    """The events in Redis, and the age of the oldest; None if there are none."""

    events: int
    oldest_age_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """Deliveries that are dead, that wait, and those that wait after a failed attempt."""

    dead: int
    pending: int
    failing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """Parked money: a person decides."""

    payments: int
    charges: int
    provider_events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """The wallets of a currency below zero, and the sum of their balances."""

    wallets: int
    balance_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The last complete verification by schedule, and how many faults are known.

    `age_s`: if none was ever complete, the time since one could have been.
    """

    is_complete: bool
    age_s: float
    faults: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What waits in Postgres, for all businesses together."""

    refused: Mapping[str, int]  # reason -> events
    webhooks: Undelivered
    parked: Parked
    below_zero: Mapping[str, Owed]  # by currency
    verified: Verified


def read_buffered(buffer: UsageBuffer) -> Buffered | str:
    """Return the figures of Redis, or why they are unknown."""
    try:
        return Buffered(events=buffer.backlog().events, oldest_age_s=buffer.oldest_age_s())
    except RedisError as error:
        return redis_is_away(error)
    except GullakError as error:
        return error.message


def redis_is_away(error: RedisError) -> str:
    """Return why nothing is known about the buffer."""
    return f"Redis does not answer ({type(error).__name__})"


def read_waiting(conn: Connection) -> Waiting:
    """Return the figures of Postgres. It reads every wallet: ask once a minute, not each second."""
    per_round = {"attempts_per_round": ATTEMPTS_PER_ROUND}
    undelivered = conn.execute(webhook.UNDELIVERED, per_round).mappings().one()
    return Waiting(
        refused={row.reason: row.events for row in conn.execute(usage.REFUSED_WAITING)},
        webhooks=Undelivered(**undelivered),
        parked=Parked(**conn.execute(payment.PARKED).mappings().one()),
        below_zero={
            row.currency: Owed(wallets=row.wallets, balance_minor=int(row.balance_minor))
            for row in conn.execute(ledger.WALLETS_BELOW_ZERO)
        },
        verified=_verified(conn),
    )


def _verified(conn: Connection) -> Verified:
    row = conn.execute(verify.VERIFIED).one()
    return Verified(is_complete=row.is_complete, age_s=float(row.age_s), faults=row.faults)
