"""`gullak status`: on one page, whether something waits for a person."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final

import typer
from redis.exceptions import RedisError

from metering.errors import ConfigurationError
from worker.cli.options import AsJson
from worker.cli.show import money, print_json, print_table
from worker.cli.target import DataDir, Target, open_target
from worker.status import (
    Buffered,
    Parked,
    Undelivered,
    Verified,
    Waiting,
    read_buffered,
    read_waiting,
    redis_is_away,
)

# Usage is debited within a second or two. Later than this, no worker does it, or they are too few.
LAG_MAX_S: Final = 60
# A verification begins every hour.
VERIFY_MAX_S: Final = 2 * 3600


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the page; `look`: the command that shows more, if a person should look."""

    name: str
    said: str
    look: str | None = None


def status(*, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show how the whole installation is; exit 1 if something waits for a person.

    That is: usage that is refused or not debited in time, webhooks that were given up, money that
    was not credited, and a ledger with faults or without a check for two hours. Debt of customers
    is shown, and is no fault.
    """
    with open_target(data_dir) as target:
        buffered = _buffered(target)
        with target.snapshot() as conn:
            waiting = read_waiting(conn)
    lines = [*_lines(buffered, waiting, target)]
    to_do = [line.name for line in lines if line.look]
    if as_json:
        buffer = {"unknown_because": buffered} if isinstance(buffered, str) else asdict(buffered)
        print_json({"is_well": not to_do, "look_at": to_do, "buffer": buffer, **asdict(waiting)})
    else:
        print_table(("what", "how it is~", "look"), [(e.name, e.said, e.look) for e in lines])
    if to_do:
        raise typer.Exit(1)


def _buffered(target: Target) -> Buffered | str:
    try:
        return read_buffered(target.buffer)
    except ConfigurationError as error:
        return error.message
    except RedisError as error:  # the number of shards is asked for first
        return redis_is_away(error)


def _lines(buffered: Buffered | str, waiting: Waiting, target: Target) -> Iterator[Line]:
    yield _buffer(buffered)
    yield _refused(waiting.refused)
    yield _webhooks(waiting.webhooks)
    yield _parked(waiting.parked)
    owed = (
        f"{owed.wallets} in {currency}, "
        + money(owed.balance_minor, currency, target.settings.currencies)
        for currency, owed in waiting.below_zero.items()
    )
    yield Line("wallets below zero", "; ".join(owed) or "none")
    yield _verify(waiting.verified)


def _buffer(buffered: Buffered | str) -> Line:
    if isinstance(buffered, str):
        return Line("buffer", f"unknown: {buffered}", "Redis")
    if buffered.oldest_age_s is None:
        return Line("buffer", "empty")
    said = f"{buffered.events} events, the oldest {buffered.oldest_age_s:.1f} s old"
    return Line("buffer", said, "the workers" if buffered.oldest_age_s > LAG_MAX_S else None)


def _refused(refused: Mapping[str, int]) -> Line:
    said = ", ".join(f"{reason} {events}" for reason, events in refused.items())
    return Line("refused events", said or "none", "gullak refused" if refused else None)


def _webhooks(webhooks: Undelivered) -> Line:
    said = f"{webhooks.dead} dead, {webhooks.failing} failing, {webhooks.pending} pending"
    return Line("webhooks", said, "gullak webhook list --status dead" if webhooks.dead else None)


def _parked(parked: Parked) -> Line:
    said = (
        f"{parked.payments} payments, {parked.charges} charges,"
        f" {parked.provider_events} events of providers"
    )
    look = "gullak providers events --status parked"
    if parked.charges and not (parked.payments or parked.provider_events):
        look = "gullak charge list --parked"
    return Line("parked money", said, look if any(asdict(parked).values()) else None)


def _verify(verified: Verified) -> Line:
    if verified.faults:
        return Line("last verify", f"{verified.faults} faults", "gullak verify")
    said = f"no fault, {verified.age_s / 60:.0f} min ago" if verified.is_complete else "none yet"
    return Line("last verify", said, "beat" if verified.age_s > VERIFY_MAX_S else None)
