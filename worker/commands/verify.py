"""`gullak verify`: every invariant of the ledger, and the account of events over both stores."""

from collections.abc import Sequence
from dataclasses import asdict

import typer
from redis.exceptions import RedisError

from metering.errors import ConfigurationError
from metering.ledger.verify import Fault, find_faults
from worker.commands.equation import EventsAccount, account_faults, read_account
from worker.commands.options import AsJson
from worker.commands.show import print_json, print_table
from worker.commands.target import DataDir, Target, open_target


def verify(*, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Check every invariant; name the wallet and entry of each fault; exit 1 if there is one.

    Nothing is repaired: a correction is a new entry. Exits 1 too where Redis is away, because
    what it buffers is then unknown.
    """
    with open_target(data_dir) as target:
        account, unknown = _account(target)
        with target.snapshot() as conn:
            faults = list(find_faults(conn))
    faults += [] if account is None else account_faults(account)
    if as_json:
        print_json(_record(faults, account, unknown))
    else:
        _print_account(account, unknown)
        _print_faults(faults)
    if faults or account is None:
        raise typer.Exit(1)


def _account(target: Target) -> tuple[EventsAccount | None, str]:
    """Return the account of events, or why it is unknown."""
    try:
        return read_account(target.snapshot, target.buffer), ""
    except RedisError as error:
        return None, f"Redis does not answer ({type(error).__name__})"
    except ConfigurationError as error:
        return None, error.message


def _record(
    faults: Sequence[Fault], account: EventsAccount | None, unknown: str
) -> dict[str, object]:
    events = None if account is None else {**asdict(account), "difference": account.difference}
    return {
        "is_sound": not faults and account is not None,
        "faults": list(faults),
        "events": events,
        "events_unknown_because": unknown or None,
    }


def _print_account(account: EventsAccount | None, unknown: str) -> None:
    if account is None:
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
        for s in account.shards
    ]
    print_table(columns, rows, "events by shard")
    names = ("accepted", "posted", "duplicate", "refused", "buffered", "lost", "difference")
    heads = [f"{'in' if name == 'accepted' else name}#" for name in names]
    print_table(heads, [[getattr(account, name) for name in names]], "events")


def _print_faults(faults: Sequence[Fault]) -> None:
    if not faults:
        typer.echo("ledger: no fault")
        return
    rows = [(f.invariant, f.wallet_id, f.entry_id, f.detail) for f in faults]
    print_table(("broken invariant~", "wallet_id", "entry_id", "detail~"), rows, "faults")
