"""How the whole installation is, in a few figures: for `gullak status` and for the metrics."""

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
    """What lies in Redis: events, and the age of the oldest; None if there are none."""

    events: int
    oldest_age_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """Deliveries of webhooks: given up, waiting, and the part of those that was tried in vain."""

    dead: int
    pending: int
    failing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """Money that waits for a person."""

    payments: int
    charges: int
    provider_events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """The wallets below zero of a currency, and their sum."""

    wallets: int
    balance_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The last complete verification by schedule, and what is known to be broken.

    `age_s`: where none was ever complete, since when one could have been.
    """

    is_complete: bool
    age_s: float
    faults: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What Postgres says of all businesses together."""

    refused: Mapping[str, int]  # reason -> events
    webhooks: Undelivered
    parked: Parked
    below_zero: Mapping[str, Owed]  # by currency
    verified: Verified


def read_buffered(buffer: UsageBuffer) -> Buffered | str:
    """Return what lies in Redis, or why that is unknown."""
    try:
        return Buffered(events=buffer.backlog().events, oldest_age_s=buffer.oldest_age_s())
    except RedisError as error:
        return redis_is_away(error)
    except GullakError as error:
        return error.message


def redis_is_away(error: RedisError) -> str:
    """Return in words why nothing is known of the buffer."""
    return f"Redis does not answer ({type(error).__name__})"


def read_waiting(conn: Connection) -> Waiting:
    """Return what Postgres says. It looks at every wallet: ask once a minute, not each second."""
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
