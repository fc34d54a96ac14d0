"""Give credit back to the very lots that debits have burned."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection

from metering.ids import EntryId, LotId
from metering.ledger.entry import LotMove
from metering.ledger.lots import statements


@dataclass(frozen=True, slots=True)
class Restorable:
    """Debits of one wallet that are to be given back, and the credits that gave some of it back."""

    debits: Sequence[EntryId]
    credits: Sequence[EntryId]


class Part(NamedTuple):
    """Part of a debit, in minor units, and the lot that paid it; None: it is debt still."""

    lot_id: LotId | None
    expires_at: datetime | None
    amount_minor: int


def restoration(
    conn: Connection, restorable: Restorable, amount_minor: int, now: datetime
) -> tuple[LotMove, ...]:
    """Return what to give back to which lots, of `amount_minor`; the wallet is locked.

    What was burned last is given back first. What no lot has paid yet is not given to a lot: a new
    one pays that debt. Neither is what came from a lot that has expired meanwhile, because there it
    would be lost.
    """
    moves: dict[LotId, int] = {}
    for lot_id, expires_at, part in _take(_kept(conn, restorable), amount_minor):
        if lot_id is not None and (expires_at is None or expires_at > now):
            moves[lot_id] = moves.get(lot_id, 0) + part
    return tuple(LotMove(lot_id, moved) for lot_id, moved in moves.items())


def _kept(conn: Connection, restorable: Restorable) -> list[Part]:
    """Return the parts that were not given back yet, the last burned last.

    Earlier credits are taken off in the order of the history, whether they went to these lots or,
    where a lot had expired, to new ones: no part is given back twice.
    """
    burned = _burned(conn, restorable.debits)
    kept: list[Part] = []
    entry_ids = [*restorable.debits, *restorable.credits]
    for row in conn.execute(statements.IN_ORDER, {"entry_ids": entry_ids}):
        if row.is_credit:
            _take(kept, row.amount_minor)
            continue
        parts = burned[row.entry_id]
        unpaid_minor = row.amount_minor - sum(part.amount_minor for part in parts)
        kept += [*parts, Part(None, None, unpaid_minor)]
    return kept


def _burned(conn: Connection, debits: Sequence[EntryId]) -> dict[EntryId, list[Part]]:
    """Return the parts of debits that lots have paid, in the order in which they burned."""
    burned: dict[EntryId, list[Part]] = {entry_id: [] for entry_id in debits}
    for row in conn.execute(statements.BURNED, {"debits": list(debits)}):
        burned[row.entry_id].append(Part(row.lot_id, row.expires_at, row.amount_minor))
    return burned


def _take(parts: list[Part], amount_minor: int) -> list[Part]:
    """Take so much off the end of `parts`; return what was taken, the last first."""
    taken = []
    while amount_minor > 0 and parts:
        last = parts.pop()
        amount = min(amount_minor, last.amount_minor)
        if amount < last.amount_minor:
            parts.append(last._replace(amount_minor=last.amount_minor - amount))
        taken.append(last._replace(amount_minor=amount))
        amount_minor -= amount
    return taken
