"""Settle a batch inside its transaction: keys claimed, usage kept, wallets debited, rest refused.

A batch whose data the database refuses is split inside the same transaction, by savepoints, until
the culprit is alone; it is refused and the others are posted. So a batch commits as a whole or not
at all, and its chunks are trimmed together. A fault of the server ends the transaction: no event is
refused for it, and none is looked for.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

import orjson
import psycopg
from sqlalchemy import Connection

from metering.checkpoint import Checkpoint
from metering.copy_format import array
from metering.db import DATABASE_ERRORS, cause_of, copy_in, is_server_fault
from metering.debit import statements
from metering.debit.batch import KeyedEvent, Refusal
from metering.debit.price import PricedEvent
from metering.errors import (
    BalanceOutOfRangeError,
    ConflictingEventError,
    MalformedChunkError,
    NotFoundError,
    UnpostableEventError,
)
from metering.fields import storable
from metering.ids import BatchId, BusinessId, WalletId
from metering.ledger.entry import Posting
from metering.ledger.post import post
from metering.money import EXACT, ZERO
from metering.rate_card.card import exact_cost


@dataclass(slots=True)
class Outcome:
    """Where the events of a batch ended."""

    posted: int = 0
    duplicate: int = 0
    refused: int = 0
    unmetered: int = 0
    replayed: int = 0

    def count(self, name: str, events: int) -> None:
        """Count events as `name`."""
        setattr(self, name, getattr(self, name) + events)

    def add(self, other: "Outcome") -> None:
        """Add another outcome's counts to this one's."""
        for name in self.__slots__:
            self.count(name, getattr(other, name))


@dataclass(slots=True)
class Settlement:
    """One batch under way."""

    conn: Connection
    batch_id: BatchId
    checkpoint: Checkpoint
    # Chunks at the front of the head that had been settled before and only not been trimmed.
    chunks_replayed: int
    # Lines for COPY, by event key: written ahead of the transaction.
    lines: Mapping[str, str]
    outcome: Outcome = field(default_factory=Outcome)
    # Refused events by reason.
    reasons: Counter[str] = field(default_factory=Counter)

    def post(self, events: Sequence[PricedEvent]) -> list[Refusal]:
        """Post what can be posted; return what the database refused or what conflicts."""
        if not events:
            return []
        before = self.outcome
        try:
            self.outcome = replace(before)
            with self.conn.begin_nested():
                return self._post_all(events)
        except BalanceOutOfRangeError as error:
            # All of that wallet at once: to look for the one too many would take a statement each.
            self.outcome = before
            kept = [event for event in events if event.wallet_id != error.wallet_id]
            over = [event.keyed for event in events if event.wallet_id == error.wallet_id]
            fault = UnpostableEventError(error.message)
            return [Refusal(keyed, fault) for keyed in over] + self.post(kept)
        except (*DATABASE_ERRORS, ArithmeticError, NotFoundError) as error:
            self.outcome = before
            if is_server_fault(error):
                raise
            if len(events) == 1:
                return [Refusal(events[0].keyed, UnpostableEventError(_plain_cause(error)))]
        middle = len(events) // 2
        return self.post(events[:middle]) + self.post(events[middle:])

    def _post_all(self, events: Sequence[PricedEvent]) -> list[Refusal]:
        fresh, conflicts = self._claim(events)
        if fresh:
            copy_in(self.conn, statements.COPY_EVENTS, [self.lines[event[0][0]] for event in fresh])
            self.conn.execute(statements.NOTE_USAGE, _usage_of_businesses(fresh, self.batch_id))
            self.checkpoint("after_copy")
            post(self.conn, _postings(fresh, self.batch_id))
        self.outcome.posted += len(fresh)
        self.outcome.unmetered += sum(event[5] is not None for event in fresh)
        return conflicts

    def _claim(self, events: Sequence[PricedEvent]) -> tuple[list[PricedEvent], list[Refusal]]:
        """Take the keys of the events; return those that are new, and those in conflict.

        Keys are copied straight into their table, at half the price of sending them as arrays.
        `COPY` knows only all or nothing, so the first key that is taken sends the batch the other
        way; the keys are sorted, so where repetitions are common the first is found at once.
        """
        taking = sorted([f"{event[0][0]}\t{event[0][1]}\t{self.batch_id}" for event in events])
        try:
            with self.conn.begin_nested():
                copy_in(self.conn, statements.COPY_KEYS, taking)
        except psycopg.errors.UniqueViolation:
            return self._claim_free(events)
        return list(events), []

    def _claim_free(self, events: Sequence[PricedEvent]) -> tuple[list[PricedEvent], list[Refusal]]:
        batch: dict[str, object] = {
            "batch_id": self.batch_id,
            "event_keys": array([event[0][0] for event in events]),
            "digests": array([event[0][1] for event in events]),
        }
        self.conn.execute(statements.CLAIM_KEYS, batch)
        fresh = {event.keyed.key: event for event in events}
        conflicts: list[Refusal] = []
        for key, same in self.conn.execute(statements.TAKEN_KEYS, batch):
            known = fresh.pop(key).keyed
            if same:
                self._count("duplicate", known)
            else:
                conflicts.append(Refusal(known, ConflictingEventError()))
        return list(fresh.values()), conflicts

    def skip(self, repeated: Sequence[KeyedEvent]) -> None:
        """Count events that repeat another one of their own batch."""
        for keyed in repeated:
            self._count("duplicate", keyed)

    def _count(self, name: str, keyed: KeyedEvent, events: int = 1) -> None:
        """Count what was not posted; if it had been settled before, as replayed, once more."""
        self.outcome.count("replayed" if keyed.chunk < self.chunks_replayed else name, events)

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Write dead letters; one that is there already is a duplicate of itself.

        One that was dismissed stays so, whoever sends it again.
        """
        if not refusals:
            return
        keys = {"event_keys": [refusal.keyed.key for refusal in refusals]}
        known = {
            (row.event_key, row.payload_digest): row
            for row in self.conn.execute(statements.KNOWN_REFUSALS, keys)
        }
        left = self._uncharged(refusals, known.keys())
        over = {identity for identity, row in known.items() if row.is_resolved}
        unique = {r.keyed.identity: r for r in left if r.keyed.identity not in over}
        if unique:
            self.conn.execute(
                statements.REFUSE, _refusal_columns(list(unique.values()), self.batch_id)
            )
        seen = over | {identity for identity, row in known.items() if row.is_waiting}
        for refusal in left:
            is_new = refusal.keyed.identity not in seen
            self._count("refused" if is_new else "duplicate", refusal.keyed, refusal.events)
            self.reasons[refusal.error.reason] += refusal.events if is_new else 0
            seen.add(refusal.keyed.identity)

    def _uncharged(
        self, refusals: Sequence[Refusal], known: Collection[tuple[str, int]]
    ) -> list[Refusal]:
        """Leave out repetitions of events that were charged when they still could be.

        What comes under the id of another event that was charged is in conflict with that one.
        """
        keys = {"event_keys": [refusal.keyed.key for refusal in refusals]}
        charged = {row.event_key: row for row in self.conn.execute(statements.CHARGED_KEYS, keys)}
        left: list[Refusal] = []
        for refusal in refusals:
            row = charged.get(refusal.keyed.key)
            if row is None or (row.batch_id == self.batch_id or refusal.keyed.identity in known):
                left.append(refusal)
            elif row.payload_digest == refusal.keyed.digest:
                self._count("duplicate", refusal.keyed)
            else:
                left.append(refusal._replace(error=ConflictingEventError()))
        return left


def _postings(events: Sequence[PricedEvent], batch_id: BatchId) -> list[Posting]:
    """One posting per wallet: its exact cost and how many events make it."""
    counts: dict[WalletId, int] = defaultdict(int)
    mantissas: dict[tuple[WalletId, int], int] = defaultdict(int)
    for _keyed, wallet_id, _currency, mantissa, scale, _gap in events:
        if wallet_id is not None:
            counts[wallet_id] += 1
            mantissas[wallet_id, scale] += mantissa
    costs: dict[WalletId, Decimal] = defaultdict(lambda: ZERO)
    for (wallet_id, scale), mantissa in mantissas.items():
        costs[wallet_id] = EXACT.add(costs[wallet_id], exact_cost(mantissa, scale))
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


def _usage_of_businesses(
    events: Sequence[PricedEvent], batch_id: BatchId
) -> dict[str, list[object]]:
    """Return the columns that say whose usage the batch holds, and of when."""
    times: dict[BusinessId, list[str]] = defaultdict(list)
    for event in events:
        keyed = event[0]
        times[keyed[2]].append(keyed[5])
    uncharged = {event[0].business_id for event in events if event[1] is None}
    return {
        "business_ids": list(times),
        "batch_ids": [batch_id] * len(times),
        "firsts": [min(moments) for moments in times.values()],
        "lasts": [max(moments) for moments in times.values()],
        "uncharged": [business_id in uncharged for business_id in times],
    }


def _refusal_columns(refusals: Sequence[Refusal], batch_id: BatchId) -> dict[str, list[object]]:
    return {
        "business_ids": [storable(r.keyed.business_id) for r in refusals],
        "event_keys": [r.keyed.key for r in refusals],
        "digests": [r.keyed.digest for r in refusals],
        "event_ids": [storable(r.keyed.event_id) for r in refusals],
        "customer_ids": [storable(r.keyed.customer_id) for r in refusals],
        "reasons": [r.error.reason for r in refusals],
        "details": [storable(r.error.message)[:1000] for r in refusals],
        "payloads": [_payload(r) for r in refusals],
        "batch_ids": [batch_id] * len(refusals),
    }


def _payload(refusal: Refusal) -> str:
    """Return the event as it was buffered: what a replay sends again."""
    if isinstance(refusal.error, MalformedChunkError):
        return refusal.keyed.metadata_json
    try:
        return orjson.dumps(tuple(refusal.keyed.event)).decode()
    except (MalformedChunkError, TypeError):
        return orjson.dumps({"line": refusal.keyed.line}).decode()


def _plain_cause(error: BaseException) -> str:
    """Return the database's own sentence without the statement and its parameters."""
    cause = cause_of(error)
    if isinstance(cause, psycopg.Error):
        return cause.diag.message_primary or type(cause).__name__
    return str(cause)
