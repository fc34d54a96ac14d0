"""Tell a business of usage that nothing prices: once per kind, in the transaction of the batch.

A kind is the reason, the event's name and the meter without a price. It is told again once the
rate card has changed and a day has passed: what was put right may have come back. How many kinds
are told is bounded, because names come with events: the others are counted all the same.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, Row

from metering.debit import statements
from metering.debit.batch import KeyedEvent
from metering.debit.prepare import PreparedBatch
from metering.errors import UnpricedEventError
from metering.fields import storable
from metering.ids import BusinessId
from metering.webhook.outbox import Notice, publish

TOLD_PER_BATCH_MAX: Final = 50
KINDS_PER_BUSINESS_MAX: Final = 1_000


class _Kind(NamedTuple):
    business_id: BusinessId
    reason: str
    event_name: str
    meter_id: str


class _Found(NamedTuple):
    """The first event of a kind; `outcome`: refused, or kept_free."""

    keyed: KeyedEvent
    error: UnpricedEventError
    outcome: str


def tell_unpriced(conn: Connection, batch: PreparedBatch) -> None:
    """Write a webhook for each kind in the batch that its business has not been told of."""
    found: dict[_Kind, _Found] = {}
    for one in _unpriced(batch):
        found.setdefault(_kind(one), one)
    if not found:
        return
    columns = _columns(sorted(found), batch)
    due = conn.execute(statements.UNTOLD, {**columns, "page": TOLD_PER_BATCH_MAX}).all()
    if not due:
        return
    kinds = [_kind_of(row) for row in due]
    noted = conn.execute(
        statements.NOTE_TOLD, {**_columns(kinds, batch), "kinds_max": KINDS_PER_BUSINESS_MAX}
    ).all()
    if noted:
        told = [_kind_of(row) for row in noted]
        publish(conn, [_notice(kind, found[kind]) for kind in told], noted[0].told_at)


def _unpriced(batch: PreparedBatch) -> Iterator[_Found]:
    for event in batch.events.values():
        if event[5] is not None:
            yield _Found(event.keyed, event[5], "kept_free")
    for refusal in batch.refusals:
        if isinstance(refusal.error, UnpricedEventError):
            yield _Found(refusal.keyed, refusal.error, "refused")


def _kind(found: _Found) -> _Kind:
    keyed, error, _ = found
    return _Kind(keyed.business_id, error.reason, storable(keyed.event_name), error.meter_id or "")


def _kind_of(row: Row[tuple[str, str, str, str]]) -> _Kind:
    return _Kind(BusinessId(row.business_id), row.reason, row.event_name, row.meter_id)


def _columns(kinds: Sequence[_Kind], batch: PreparedBatch) -> dict[str, list[object]]:
    return {
        "business_ids": [kind.business_id for kind in kinds],
        "reasons": [kind.reason for kind in kinds],
        "event_names": [kind.event_name for kind in kinds],
        "meter_ids": [kind.meter_id for kind in kinds],
        "versions": [batch.versions[kind.business_id] for kind in kinds],
    }


def _notice(kind: _Kind, found: _Found) -> Notice:
    data = {
        "reason": kind.reason,
        "detail": storable(found.error.message),
        "outcome": found.outcome,
        "event_name": kind.event_name,
        "meter_id": kind.meter_id or None,
        "event_id": storable(found.keyed.event_id),
        "customer_id": storable(found.keyed.customer_id),
        "timestamp": found.keyed.event_at,
    }
    return Notice(kind.business_id, "usage.unpriced", data)
