"""Give credit back to the very lots that debits have burned."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from metering.ids import EntryId
from metering.ledger.entry import LotMove
from metering.ledger.lots import statements


@dataclass(frozen=True, slots=True)
class Restorable:
    """Debits whose credit is to be given back, and the credits that gave some of it back before."""

    debits: Sequence[EntryId]
    credits: Sequence[EntryId]


def restoration(
    conn: Connection, restorable: Restorable, amount_minor: int, now: datetime
) -> tuple[LotMove, ...]:
    """Return what to give back to which lots, of `amount_minor`; the wallet is locked.

    What was burned last is given back first. What no lot has paid yet is not given to a lot: a new
    one pays that debt. Neither is what came from a lot that has expired meanwhile, because there it
    would be lost.
    """
    values = {"debits": list(restorable.debits), "credits": list(restorable.credits)}
    rest = amount_minor - conn.execute(statements.UNPAID, values).scalar_one()
    moves = []
    for row in conn.execute(statements.RESTORABLE, values):
        if rest <= 0:
            break
        part = min(rest, row.burned_minor)
        rest -= part
        if row.expires_at is None or row.expires_at > now:
            moves.append(LotMove(row.lot_id, part))
    return tuple(moves)
