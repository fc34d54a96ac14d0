"""Write a batch inside its transaction: keys, kept usage, debits of wallets, dead letters.

If the database refuses the data of a batch, savepoints split the batch inside the same transaction
until the bad event is alone. It is refused and the others are posted. So a batch commits as a whole
or not at all, and its chunks are trimmed together. A fault of the server ends the transaction, and
no event is refused for it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
    """How many events of a batch ended where; `unmetered` ones are also posted."""

    posted: int = 0
    duplicate: int = 0
    refused: int = 0
    unmetered: int = 0
    replayed: int = 0

    def count(self, name: str, events: int) -> None:
        """Count events as `name`."""
        setattr(self, name, getattr(self, name) + events)

    def add(self, other: "Outcome") -> None:
        """Add the counts of another outcome."""
        for name, events in asdict(other).items():
            self.count(name, events)


@dataclass(slots=True)
class BatchWriter:
    """Writes one batch and counts where its events end."""

    conn: Connection
    batch_id: BatchId
    checkpoint: Checkpoint
    # Chunks at the front of the head that an earlier batch has settled but not trimmed.
    chunks_replayed: int
    # Lines for COPY, by event key.
    lines: Mapping[str, str]
    outcome: Outcome = field(default_factory=Outcome)
    # Refused events by reason.
    reasons: Counter[str] = field(default_factory=Counter)

    def post(self, events: Sequence[PricedEvent]) -> list[Refusal]:
        """Post events. Return those in conflict and those that the database refuses."""
        if not events:
            return []
        before = self.outcome
        try:
            self.outcome = replace(before)
            with self.conn.begin_nested():
                return self._post_all(events)
        except BalanceOutOfRangeError as error:
            # Refuse all events of the wallet: to find the one too many would cost many statements.
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
        """Take the keys of the events. Return the new events, and those in conflict.

        `COPY` of keys costs half of sending arrays, but it takes all or none, so one known key
        sends the batch to `_claim_free`. The keys are sorted: where repetitions are common, `COPY`
        fails at once.
        """
        keys = sorted([f"{event[0][0]}\t{event[0][1]}\t{self.batch_id}" for event in events])
        try:
            with self.conn.begin_nested():
                copy_in(self.conn, statements.COPY_KEYS, keys)
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
            keyed = fresh.pop(key).keyed
            if same:
                self._count("duplicate", keyed)
            else:
                conflicts.append(Refusal(keyed, ConflictingEventError()))
        return list(fresh.values()), conflicts

    def skip(self, repeated: Sequence[KeyedEvent]) -> None:
        """Count events that repeat another one of their own batch."""
        for keyed in repeated:
            self._count("duplicate", keyed)

    def _count(self, name: str, keyed: KeyedEvent, events: int = 1) -> None:
        """Count events that were not posted, as replayed if an earlier batch had settled them."""
        self.outcome.count("replayed" if keyed.chunk < self.chunks_replayed else name, events)

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Write dead letters. One that is stored already counts as a duplicate.

        One that was dismissed stays dismissed if it comes again.
        """
        if not refusals:
            return
        keys = {"event_keys": [refusal.keyed.key for refusal in refusals]}
        stored = {
            (row.event_key, row.payload_digest): row
            for row in self.conn.execute(statements.STORED_REFUSALS, keys)
        }
        uncharged = self._uncharged(refusals, stored)
        resolved = {identity for identity, row in stored.items() if row.is_resolved}
        wanted = {r.keyed.identity: r for r in uncharged if r.keyed.identity not in resolved}
        if wanted:
            columns = _refusal_columns(list(wanted.values()), self.batch_id)
            self.conn.execute(statements.REFUSE, columns)
        seen = resolved | {identity for identity, row in stored.items() if row.is_waiting}
        for refusal in uncharged:
            is_new = refusal.keyed.identity not in seen
            self._count("refused" if is_new else "duplicate", refusal.keyed, refusal.events)
            self.reasons[refusal.error.reason] += refusal.events if is_new else 0
            seen.add(refusal.keyed.identity)

    def _uncharged(
        self, refusals: Sequence[Refusal], stored: Mapping[tuple[str, int], object]
    ) -> list[Refusal]:
        """Return the refusals without repetitions of charged events, which could be priced then.

        An event with the id of a charged event but other content is a conflict.
        """
        keys = {"event_keys": [refusal.keyed.key for refusal in refusals]}
        charged = {row.event_key: row for row in self.conn.execute(statements.CHARGED_KEYS, keys)}
        uncharged: list[Refusal] = []
        for refusal in refusals:
            row = charged.get(refusal.keyed.key)
            if row is None or row.batch_id == self.batch_id or refusal.keyed.identity in stored:
                uncharged.append(refusal)
            elif row.payload_digest == refusal.keyed.digest:
                self._count("duplicate", refusal.keyed)
            else:
                uncharged.append(refusal._replace(error=ConflictingEventError()))
        return uncharged


def _postings(events: Sequence[PricedEvent], batch_id: BatchId) -> list[Posting]:
    """Return one posting per wallet, with its exact cost and number of events."""
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
    """Return the columns of NOTE_USAGE: businesses and the times of their first and last event."""
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
    """Return the event as it was buffered, for a replay."""
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
