"""The chain of a wallet's entries: none missing, none edited."""

from collections.abc import Iterator
from functools import partial
from typing import Final

from sqlalchemy import Connection

from metering.ledger.entry import Entry, chain_digest
from metering.ledger.history import entry_of
from metering.ledger.verify import statements
from metering.ledger.verify.fault import Fault

WALK_ROWS: Final = 10_000


def walk_chain(conn: Connection, page: dict[str, object]) -> Iterator[Fault]:
    """Follow the entries of each wallet of a page from the first."""
    previous: Entry | None = None
    options = {"yield_per": WALK_ROWS}
    for row in conn.execute(statements.ENTRIES_OF_PAGE, page, execution_options=options):
        entry = entry_of(row)
        if previous is not None and previous.wallet_id != entry.wallet_id:
            previous = None
        yield from _link_faults(previous, entry)
        previous = entry


def _link_faults(previous: Entry | None, entry: Entry) -> Iterator[Fault]:
    fault = partial(Fault, wallet_id=entry.wallet_id, entry_id=entry.entry_id)
    expected = 1 if previous is None else previous.version + 1
    if entry.version != expected:
        yield fault(
            invariant="entries are without gaps",
            detail=f"version {expected} is missing before version {entry.version}",
        )
        return
    before = (0, 0) if previous is None else (previous.after_minor, previous.remainder_after)
    if (entry.before_minor, entry.remainder_before) != before:
        yield fault(
            invariant="each entry continues the one before it",
            detail=f"version {entry.version} begins at {entry.before_minor}, not at {before[0]}",
        )
    sign = 1 if entry.is_credit else -1
    if entry.after_minor != entry.before_minor + sign * entry.amount_minor:
        yield fault(
            invariant="after = before ± amount",
            detail=f"version {entry.version} ends at {entry.after_minor}",
        )
    if entry.chain != chain_digest(b"" if previous is None else previous.chain, entry):
        yield fault(
            invariant="entries are as they were written",
            detail=f"version {entry.version} does not match its digest: it was edited",
        )
