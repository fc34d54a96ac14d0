"""Settle a batch inside its transaction: keys claimed, usage kept, wallets debited, rest refused.

A batch that the database refuses is split inside the same transaction, by savepoints, until the
culprit is alone; it is refused and the others are posted. So a batch commits as a whole or not at
all, and its chunks are trimmed together.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final

import orjson
import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from metering.clock import to_wire
from metering.db import copy_in, copy_text, is_transient
from metering.debit import statements
from metering.debit.batch import KeyedEvent, Refusal
from metering.debit.pricing import PricedEvent
from metering.errors import (
    BalanceOutOfRangeError,
    ConflictingEventError,
    MalformedChunkError,
    UnpostableEventError,
)
from metering.ids import BatchId, WalletId
from metering.ledger.entry import Posting
from metering.ledger.post import post
from metering.money import EXACT, ZERO

Checkpoint = Callable[[str], None]
_NULL: Final = r"\N"
_SEPARATORS: Final = 9  # tabs in a line of `statements.COPY_EVENTS`


@dataclass(slots=True)
class Outcome:
    """Where the events of a batch ended."""

    posted: int = 0
    duplicate: int = 0
    refused: int = 0
    unmetered: int = 0
    replayed: int = 0

    def count(self, name: str, keyed: KeyedEvent, count: int = 1) -> None:
        """Count events as `name`; what had been settled before counts as replayed, once more."""
        name = "replayed" if keyed.replayed and name != "posted" else name
        setattr(self, name, getattr(self, name) + count)


@dataclass(slots=True)
class Settlement:
    """One batch under way."""

    conn: Connection
    batch_id: BatchId
    posted_at: datetime
    checkpoint: Checkpoint
    outcome: Outcome = field(default_factory=Outcome)

    def post(self, events: Sequence[PricedEvent]) -> list[Refusal]:
        """Post what can be posted; return what the database refused or what conflicts."""
        if not events:
            return []
        before = self.outcome
        try:
            self.outcome = Outcome(**_values(before))
            with self.conn.begin_nested():
                return self._post_all(events)
        except (DBAPIError, psycopg.Error, BalanceOutOfRangeError) as error:
            self.outcome = before
            if is_transient(error):
                raise
            if len(events) == 1:
                return [Refusal(events[0].keyed, UnpostableEventError(_plain_cause(error)))]
        middle = len(events) // 2
        return self.post(events[:middle]) + self.post(events[middle:])

    def _post_all(self, events: Sequence[PricedEvent]) -> list[Refusal]:
        fresh, conflicts = self._claim(events)
        if fresh:
            copy_in(self.conn, statements.COPY_EVENTS, self._lines(fresh))
            self.checkpoint("after_copy")
            post(self.conn, _postings(fresh, self.batch_id))
        self.outcome.posted += len(fresh)
        self.outcome.unmetered += sum(not event.metered for event in fresh)
        return conflicts

    def _claim(self, events: Sequence[PricedEvent]) -> tuple[list[PricedEvent], list[Refusal]]:
        """Take the keys of the events; return those that are new, and those in conflict."""
        first: dict[str, PricedEvent] = {}
        conflicts: list[Refusal] = []
        for event in events:
            known = first.setdefault(event.keyed.key, event)
            if known is not event:
                self._repeated(event, conflicts, same=known.keyed.digest == event.keyed.digest)
        self.conn.execute(statements.CLEAR_STAGE)
        staged = [f"{event.keyed.key}\t{event.keyed.digest}" for event in first.values()]
        count = len(staged)
        copy_in(self.conn, statements.COPY_STAGE, staged)
        batch = {"batch_id": self.batch_id}
        if self.conn.execute(statements.CLAIM_KEYS, batch).rowcount == count:
            return list(first.values()), conflicts
        for key, same in self.conn.execute(statements.TAKEN_KEYS, batch):
            self._repeated(first.pop(key), conflicts, same=same)
        return list(first.values()), conflicts

    def _repeated(self, event: PricedEvent, conflicts: list[Refusal], *, same: bool) -> None:
        if same:
            self.outcome.count("duplicate", event.keyed)
        else:
            conflicts.append(Refusal(event.keyed, ConflictingEventError()))

    def _lines(self, events: Sequence[PricedEvent]) -> list[str]:
        """Write events for COPY.

        Whether a text needs escapes is asked once per batch: counting the separators of the whole
        finds any that a text brought along. Hardly any batch has one, and escaping each text costs
        as much as all the rest of a line.
        """
        lines = self._written(events, lambda text: text)
        whole = "\n".join(lines)
        plain = (
            whole.count("\t") == _SEPARATORS * len(lines)
            and whole.count("\n") == len(lines) - 1
            and whole.count("\\") == whole.count("\t\\N\t")
            and "\r" not in whole
        )
        return lines if plain else self._written(events, copy_text)

    def _written(self, events: Sequence[PricedEvent], escaped: Callable[[str], str]) -> list[str]:
        tail = f"{self.batch_id}\t{to_wire(self.posted_at)}"
        return [
            f"{keyed.business_id}\t{escaped(event_id)}\t{escaped(customer_id)}"
            f"\t{escaped(name)}\t{escaped(event_at)}\t{escaped(keyed.metadata_json)}"
            f"\t{currency or _NULL}\t{cost}\t{tail}"
            for keyed, _wallet, currency, cost, _metered in events
            for event_id, customer_id, name, event_at, _metadata in (keyed.event,)
        ]

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Write dead letters; one that is already waiting is a duplicate of itself."""
        if not refusals:
            return
        if not (refusals := self._uncharged(refusals)):
            return
        unique = {(r.keyed.key, r.keyed.digest): r for r in refusals}
        values = _refusal_columns(list(unique.values()), self.batch_id)
        rows = self.conn.execute(statements.REFUSE, values)
        fresh = {(row.event_key, row.payload_digest) for row in rows}
        for refusal in refusals:
            name = "refused" if (refusal.keyed.key, refusal.keyed.digest) in fresh else "duplicate"
            fresh.discard((refusal.keyed.key, refusal.keyed.digest))
            self.outcome.count(name, refusal.keyed, refusal.events)

    def _uncharged(self, refusals: Sequence[Refusal]) -> Sequence[Refusal]:
        """Leave out repetitions of events that were charged when they still could be."""
        keys = [refusal.keyed.key for refusal in refusals]
        rows = self.conn.execute(statements.CHARGED_KEYS, {"event_keys": keys})
        charged = {(row.event_key, row.payload_digest) for row in rows}
        for refusal in refusals:
            if (refusal.keyed.key, refusal.keyed.digest) in charged:
                self.outcome.count("duplicate", refusal.keyed)
        return [r for r in refusals if (r.keyed.key, r.keyed.digest) not in charged]


def _values(outcome: Outcome) -> dict[str, int]:
    return {name: getattr(outcome, name) for name in Outcome.__slots__}


def _postings(events: Sequence[PricedEvent], batch_id: BatchId) -> list[Posting]:
    """One posting per wallet: its exact cost and how many events make it."""
    counts: dict[WalletId, int] = defaultdict(int)
    costs: dict[WalletId, Decimal] = defaultdict(lambda: ZERO)
    for _keyed, wallet_id, _currency, cost, _metered in events:
        if wallet_id is not None:
            counts[wallet_id] += 1
            costs[wallet_id] = EXACT.add(costs[wallet_id], cost)
    return [
        Posting(
            wallet_id=wallet_id,
            kind="usage",
            is_credit=False,
            exact_cost=cost,
            reason="usage",
            batch_id=batch_id,
            event_count=counts[wallet_id],
        )
        for wallet_id, cost in costs.items()
    ]


def _refusal_columns(refusals: Sequence[Refusal], batch_id: BatchId) -> dict[str, list[object]]:
    return {
        "business_ids": [r.keyed.business_id for r in refusals],
        "event_keys": [r.keyed.key for r in refusals],
        "digests": [r.keyed.digest for r in refusals],
        "event_ids": [_storable(r.keyed.event.event_id) for r in refusals],
        "customer_ids": [_storable(r.keyed.event.customer_id) for r in refusals],
        "reasons": [r.error.reason for r in refusals],
        "details": [_storable(r.error.message)[:1000] for r in refusals],
        "payloads": [_payload(r) for r in refusals],
        "batch_ids": [batch_id] * len(refusals),
    }


def _payload(refusal: Refusal) -> str:
    """Return the event as it was buffered: what a replay sends again."""
    if isinstance(refusal.error, MalformedChunkError):
        return refusal.keyed.metadata_json
    return orjson.dumps(tuple(refusal.keyed.event)).decode()


def _storable(text: str) -> str:
    """Postgres holds no NUL in a text; JSON does, escaped, so the payload keeps it."""
    return text.replace("\0", "\N{SYMBOL FOR NULL}")


def _plain_cause(error: BaseException) -> str:
    """Return the database's own sentence without the statement and its parameters."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.Error):
        return cause.diag.message_primary or type(cause).__name__
    return str(cause)
