"""`gullak verify`: every invariant of the ledger, and the balance of events over both stores."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Final

import typer
from redis.exceptions import RedisError
from typer import Argument, Option

from metering.errors import ConfigurationError, FieldProblem, InvalidInputError, NotFoundError
from metering.invariants import Fault
from metering.usage.balance_of_events import EventBalance, read_balance
from metering.verify import find_faults
from metering.verify.accepted import AcceptedFault, accept_fault, accepted_faults
from worker.cli.command import Group, command
from worker.cli.page import Page, Sentence, View, columns
from worker.cli.target import Target
from worker.status import redis_is_away

app = Group(runs_alone=True)

_SHARDS: Final = columns(
    "shard#, life, in# = accepted, settled#, buffered#, lost#, rewound#",
    life=lambda shard: "now" if shard.live else "ended",
)
_EVENTS: Final = columns("""
    in# = accepted, posted#, duplicate#, refused#, buffered#, lost#, difference#
""")
_ACCEPTED: Final = columns("fault_id, accepted_at, reason~, detail~")
_FAULTS: Final = columns("fault_id, broken invariant~ = invariant, wallet_id, entry_id, detail~")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Faults, those that were accepted, and the balance of events or why it is `unknown`."""

    faults: Sequence[Fault]
    accepted: Sequence[AcceptedFault]
    events: EventBalance | None
    unknown: str | None

    @property
    def is_sound(self) -> bool:
        """Whether nothing is broken and nothing is unknown."""
        return not self.faults and self.events is not None

    def as_json(self) -> dict[str, object]:
        """Return it for programs."""
        events = self.events
        return {
            "is_sound": self.is_sound,
            "faults": [{"fault_id": fault.fault_id, **asdict(fault)} for fault in self.faults],
            "accepted": self.accepted,
            "events": events and {**asdict(events), "difference": events.difference},
            "events_unknown_because": self.unknown,
        }


def _print(found: Verified, view: View) -> None:
    if found.events is None:
        typer.echo(f"events: unknown, because {found.unknown}")
    else:
        view.table(_SHARDS, found.events.shards, "events by shard")
        view.table(_EVENTS, [found.events], "events")
    if found.accepted:
        view.table(_ACCEPTED, found.accepted, "accepted")
    if found.faults:
        view.table(_FAULTS, found.faults, "faults")
    else:
        typer.echo("ledger: no fault")


@app.callback()
@command(Page(_print), exit_code=lambda found: 0 if found.is_sound else 1)
def verify(target: Target) -> Verified:
    """Check every invariant; name the wallet and entry of each fault; exit 1 if there is one.

    Nothing is repaired: a correction is a new entry. Exits 1 too if Redis does not answer, because
    the buffered events are then unknown. A fault that was accepted is listed, and not counted.
    """
    found = _verified(target)
    accepted = {fault.fault_id for fault in found.accepted}
    return replace(found, faults=[one for one in found.faults if one.fault_id not in accepted])


@app.add("accept")
def accept(
    target: Target,
    fault_id: Annotated[str, Argument(help="As `gullak verify` names it.", metavar="FAULT")],
    reason: Annotated[str, Option("--reason", help="Why it is accepted: kept with it.")],
) -> Sentence:
    """Accept a known fault by its name: it stays listed, and is counted no more.

    Nothing else changes. If the fault grows, it becomes another fault.
    """
    if not reason.strip():
        raise InvalidInputError(FieldProblem("reason", "is empty"))
    for fault in _verified(target).faults:
        if fault.fault_id == fault_id:
            with target.transaction() as conn:
                accept_fault(conn, fault, reason.strip())
            record = {"fault_id": fault_id, **asdict(fault)}
            return Sentence(record, f"{fault_id} accepted: {fault.invariant}: {fault.detail}")
    raise NotFoundError("fault", fault_id)


def _verified(target: Target) -> Verified:
    """Check everything; accepted faults are among the faults, and each fault is there once."""
    events, unknown = _events(target)
    with target.snapshot() as conn:
        faults = list(find_faults(conn))
        accepted = accepted_faults(conn)
    faults += [] if events is None else events.faults()
    faults = list(dict.fromkeys(faults))
    return Verified(faults=faults, accepted=accepted, events=events, unknown=unknown)


def _events(target: Target) -> tuple[EventBalance | None, str | None]:
    """Return the balance of events, or why it is unknown."""
    try:
        return read_balance(target.snapshot, target.buffer), None
    except RedisError as error:
        return None, redis_is_away(error)
    except ConfigurationError as error:
        return None, error.message
