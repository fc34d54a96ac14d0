"""Give credit back to the lots that debits have consumed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import Connection

from metering.ids import EntryId, LotId
from metering.ledger.entry import LotMove, LotTerms
from metering.ledger.lots import statements

# The life of the lot for credit that is given back after its own lot has expired.
RESTORED_VALID_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class Restorable:
    """Debits of one wallet to give back, and the credits that gave back parts of them before."""

    debits: Sequence[EntryId]
    credits: Sequence[EntryId]


class Part(NamedTuple):
    """Part of a debit, and the lot that paid it, or None if it is still debt."""

    lot_id: LotId | None
    expires_at: datetime | None
    amount_minor: int


def restoration(
    conn: Connection, restorable: Restorable, amount_minor: int, now: datetime
) -> tuple[LotMove, ...]:
    """Return how much of `amount_minor` goes back to which lots. The caller has locked the wallet.

    The last consumed part is given back first. The rest becomes a new lot: debt that no lot has
    paid, and parts of lots that have expired meanwhile, where the credit would be lost.
    """
    moves: dict[LotId, int] = {}
    for lot_id, expires_at, part in _take(_kept(conn, restorable), amount_minor):
        if lot_id is not None and (expires_at is None or expires_at > now):
            moves[lot_id] = moves.get(lot_id, 0) + part
    return tuple(LotMove(lot_id, moved) for lot_id, moved in moves.items())


def restored_terms(now: datetime) -> LotTerms:
    """Return the terms of the lot for credit that cannot go back to its own lot."""
    return LotTerms(source="refund", expires_at=now + timedelta(days=RESTORED_VALID_DAYS))


def _kept(conn: Connection, restorable: Restorable) -> list[Part]:
    """Return the parts that were not given back yet, in the order of consumption.

    Earlier credits are subtracted in the order of the history, even if they went to new lots, so
    that no part is given back twice.
    """
    consumed = _consumed(conn, restorable.debits)
    kept: list[Part] = []
    entry_ids = [*restorable.debits, *restorable.credits]
    for row in conn.execute(statements.IN_ORDER, {"entry_ids": entry_ids}):
        if row.is_credit:
            _take(kept, row.amount_minor)
            continue
        parts = consumed[row.entry_id]
        unpaid_minor = row.amount_minor - sum(part.amount_minor for part in parts)
        kept += [*parts, Part(None, None, unpaid_minor)]
    return kept


def _consumed(conn: Connection, debits: Sequence[EntryId]) -> dict[EntryId, list[Part]]:
    """Return the parts of debits that lots have paid, in the order of consumption."""
    consumed: dict[EntryId, list[Part]] = {entry_id: [] for entry_id in debits}
    for row in conn.execute(statements.BURNED, {"debits": list(debits)}):
        consumed[row.entry_id].append(Part(row.lot_id, row.expires_at, row.amount_minor))
    return consumed


def _take(parts: list[Part], amount_minor: int) -> list[Part]:
    """Take an amount off the end of `parts`; return the taken parts, the last one first."""
    taken = []
    while amount_minor > 0 and parts:
        last = parts.pop()
        amount = min(amount_minor, last.amount_minor)
        if amount < last.amount_minor:
            parts.append(last._replace(amount_minor=last.amount_minor - amount))
        taken.append(last._replace(amount_minor=amount))
        amount_minor -= amount
    return taken
