"""`gullak verify`: every invariant of the ledger, and the balance of events over both stores."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from redis.exceptions import RedisError

from metering.errors import ConfigurationError, FieldProblem, InvalidInputError, NotFoundError
from metering.ledger.verify import Fault, find_faults
from metering.ledger.verify.accepted import AcceptedFault, accept_fault, accepted_faults
from metering.usage.balance_of_events import EventBalance, read_balance
from worker.cli.options import AsJson
from worker.cli.show import print_json, print_table
from worker.cli.target import DataDir, Target, open_target

app = typer.Typer(help="Check every invariant of the ledger.", invoke_without_command=True)

Reason = Annotated[str, typer.Option("--reason", help="Why it is accepted: kept with it.")]


@app.callback()
def verify(context: typer.Context, *, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Check every invariant; name the wallet and entry of each fault; exit 1 if there is one.

    Nothing is repaired: a correction is a new entry. Exits 1 too where Redis is away, because
    what it buffers is then unknown. A fault that was accepted is listed, and is none.
    """
    if context.invoked_subcommand is not None:
        return
    with open_target(data_dir) as target:
        balance, unknown, faults, accepted = _look(target)
    known = {fault.fault_id for fault in accepted}
    faults = [fault for fault in faults if fault.fault_id not in known]
    if as_json:
        print_json(_record(faults, accepted, balance, unknown))
    else:
        _print_balance(balance, unknown)
        _print_faults(faults, accepted)
    if faults or balance is None:
        raise typer.Exit(1)


@app.command()
def accept(
    fault_id: Annotated[str, typer.Argument(help="As `gullak verify` names it.", metavar="FAULT")],
    reason: Reason,
    data_dir: DataDir = None,
) -> None:
    """Accept a known fault by its name: it stays listed, and is counted no more.

    Nothing else changes. Should the fault grow, that is another fault.
    """
    if not reason.strip():
        raise InvalidInputError(FieldProblem("reason", "is empty"))
    with open_target(data_dir) as target:
        _balance, _unknown, faults, _accepted = _look(target)
        named = [fault for fault in faults if fault.fault_id == fault_id]
        if not named:
            raise NotFoundError("fault", fault_id)
        with target.transaction() as conn:
            accept_fault(conn, named[0], reason.strip())
    typer.echo(f"{fault_id} accepted: {named[0].invariant}: {named[0].detail}")


Found = tuple[EventBalance | None, str, Sequence[Fault], Sequence[AcceptedFault]]


def _look(target: Target) -> Found:
    """Return the balance of events, or why it is unknown; all faults, each once; those accepted."""
    balance, unknown = _read(target)
    with target.snapshot() as conn:
        faults = list(find_faults(conn))
        accepted = accepted_faults(conn)
    faults += [] if balance is None else balance.faults()
    return balance, unknown, list(dict.fromkeys(faults)), accepted


def _read(target: Target) -> tuple[EventBalance | None, str]:
    """Return the balance of events, or why it is unknown."""
    try:
        return read_balance(target.snapshot, target.buffer), ""
    except RedisError as error:
        return None, f"Redis does not answer ({type(error).__name__})"
    except ConfigurationError as error:
        return None, error.message


def _record(
    faults: Sequence[Fault],
    accepted: Sequence[AcceptedFault],
    balance: EventBalance | None,
    unknown: str,
) -> dict[str, object]:
    events = None if balance is None else {**asdict(balance), "difference": balance.difference}
    return {
        "is_sound": not faults and balance is not None,
        "faults": [{"fault_id": fault.fault_id, **asdict(fault)} for fault in faults],
        "accepted": list(accepted),
        "events": events,
        "events_unknown_because": unknown or None,
    }


def _print_balance(balance: EventBalance | None, unknown: str) -> None:
    if balance is None:
        typer.echo(f"events: unknown, because {unknown}")
        return
    columns = ("shard#", "life", "in#", "settled#", "buffered#", "lost#", "rewound#")
    rows = [
        (
            s.shard,
            "now" if s.live else "ended",
            s.accepted,
            s.settled,
            s.buffered,
            s.lost,
            s.rewound,
        )
        for s in balance.shards
    ]
    print_table(columns, rows, "events by shard")
    names = ("accepted", "posted", "duplicate", "refused", "buffered", "lost", "difference")
    heads = [f"{'in' if name == 'accepted' else name}#" for name in names]
    print_table(heads, [[getattr(balance, name) for name in names]], "events")


def _print_faults(faults: Sequence[Fault], accepted: Sequence[AcceptedFault]) -> None:
    if accepted:
        known = [(f.fault_id, f.accepted_at, f.reason, f.detail) for f in accepted]
        print_table(("fault_id", "accepted_at", "reason~", "detail~"), known, "accepted")
    if not faults:
        typer.echo("ledger: no fault")
        return
    rows = [(f.fault_id, f.invariant, f.wallet_id, f.entry_id, f.detail) for f in faults]
    heads = ("fault_id", "broken invariant~", "wallet_id", "entry_id", "detail~")
    print_table(heads, rows, "faults")
