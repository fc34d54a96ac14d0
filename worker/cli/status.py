"""`gullak status`: on one page, whether something waits for a person."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple

from redis.exceptions import RedisError

from metering.errors import ConfigurationError
from worker.cli.command import command
from worker.cli.page import Page, View
from worker.cli.show import money, print_table
from worker.cli.target import Target
from worker.status import (
    Buffered,
    Parked,
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


class Line(NamedTuple):
    """A line of the page; `look`: the command that shows more, if a person should look."""

    name: str
    state: str
    look: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """The state of both stores; a text in place of `buffered` is why it is unknown."""

    buffered: Buffered | str
    waiting: Waiting

    @property
    def to_do(self) -> list[str]:
        """The names of the lines that a person should look at."""
        return [line.name for line in self.lines({}) if line.look]

    def as_json(self) -> dict[str, object]:
        """Return it for programs."""
        unknown = {"unknown_because": self.buffered}
        buffer = unknown if isinstance(self.buffered, str) else asdict(self.buffered)
        shown = {"is_well": not self.to_do, "look_at": self.to_do, "buffer": buffer}
        return {**shown, **asdict(self.waiting)}

    def lines(self, currencies: Mapping[str, int]) -> list[Line]:
        """Return the page, line by line."""
        waiting = self.waiting
        refused = ", ".join(f"{reason} {count}" for reason, count in waiting.refused.items())
        webhooks = waiting.webhooks
        sending = f"{webhooks.dead} dead, {webhooks.failing} failing, {webhooks.pending} pending"
        dead = "gullak webhook list --status dead" if webhooks.dead else None
        owed = (
            f"{owed.wallets} in {currency}, {money(owed.balance_minor, currency, currencies)}"
            for currency, owed in waiting.below_zero.items()
        )
        return [
            _buffer(self.buffered),
            Line("refused events", refused or "none", "gullak refused" if refused else None),
            Line("webhooks", sending, dead),
            _parked(waiting.parked),
            Line("wallets below zero", "; ".join(owed) or "none", None),
            _verify(waiting.verified),
        ]


def _buffer(buffered: Buffered | str) -> Line:
    if isinstance(buffered, str):
        return Line("buffer", f"unknown: {buffered}", "Redis")
    if buffered.oldest_age_s is None:
        return Line("buffer", "empty", None)
    state = f"{buffered.events} events, the oldest {buffered.oldest_age_s:.1f} s old"
    return Line("buffer", state, "the workers" if buffered.oldest_age_s > LAG_MAX_S else None)


def _parked(parked: Parked) -> Line:
    state = (
        f"{parked.payments} payments, {parked.charges} charges,"
        f" {parked.provider_events} events of providers"
    )
    look = "gullak providers events --status parked"
    if parked.charges and not (parked.payments or parked.provider_events):
        look = "gullak charge list --parked"
    return Line("parked money", state, look if any(asdict(parked).values()) else None)


def _verify(verified: Verified) -> Line:
    if verified.faults:
        return Line("last verify", f"{verified.faults} faults", "gullak verify")
    state = f"no fault, {verified.age_s / 60:.0f} min ago" if verified.is_complete else "none yet"
    return Line("last verify", state, "beat" if verified.age_s > VERIFY_MAX_S else None)


def _print(found: Status, view: View) -> None:
    print_table(("what", "how it is~", "look"), found.lines(view.currencies))


@command(Page(_print), exit_code=lambda found: 1 if found.to_do else 0)
def status(target: Target) -> Status:
    """Show on one page whether something waits for a person.

    Exits 1 if it does: usage that is refused or not debited in time, webhooks that were given up,
    money that was not credited, and a ledger with faults or without a check for two hours.
    Customers' debt is shown, and is no fault.
    """
    buffered = _buffered(target)
    with target.snapshot() as conn:
        return Status(buffered, read_waiting(conn))


def _buffered(target: Target) -> Buffered | str:
    try:
        return read_buffered(target.buffer)
    except ConfigurationError as error:
        return error.message
    except RedisError as error:  # the first command reads the number of shards
        return redis_is_away(error)
