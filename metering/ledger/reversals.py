"""Which later entries give a debit back, or call the credit of a purchase back."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection

from metering.ids import EntryId
from metering.ledger import statements
from metering.ledger.entry import Entry, Kind


class Reversal(NamedTuple):
    """A refund of a debit; or a reversal of a purchase, whose credit gives called-back credit back.

    `amount_minor` is never negative.
    """

    entry_id: EntryId
    kind: Kind
    is_credit: bool
    amount_minor: int
    created_at: datetime


def reversals_of(
    conn: Connection, entries: Sequence[Entry]
) -> Mapping[EntryId, Sequence[Reversal]]:
    """Return the reversals of entries, oldest first; entries without one are left out."""
    named = {_name(entry): entry.entry_id for entry in entries}
    values = {
        "references": [*named],
        "wallet_ids": [*{entry.wallet_id for entry in entries}],
    }
    found: dict[EntryId, list[Reversal]] = defaultdict(list)
    for reference, *columns in conn.execute(statements.REVERSALS, values):
        found[named[reference]].append(Reversal(*columns))
    return found


def _name(entry: Entry) -> str:
    """Return how reversals refer to an entry: by its purchase, or by its id."""
    return entry.reference or "" if entry.kind == "purchase" else entry.entry_id
