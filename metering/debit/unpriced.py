"""Notify a business of usage without a price: once per kind, in the transaction of the batch.

A kind is a reason, an event name and a meter without a price. Its notice is sent again after a day
if the rate card has changed, because the mistake may have come back. Event names come from
producers, so the number of kinds is limited; events of further kinds are only counted.
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

NOTICES_PER_BATCH_MAX: Final = 50
KINDS_PER_BUSINESS_MAX: Final = 1_000


class _Kind(NamedTuple):
    business_id: BusinessId
    reason: str
    event_name: str
    meter_id: str


class _Example(NamedTuple):
    """The first event of a kind; `outcome` is refused or kept_free."""

    keyed: KeyedEvent
    error: UnpricedEventError
    outcome: str


def notify_unpriced(conn: Connection, batch: PreparedBatch) -> None:
    """Write a webhook for each kind in the batch whose notice is due."""
    examples: dict[_Kind, _Example] = {}
    for example in _examples(batch):
        examples.setdefault(_kind(example), example)
    if not examples:
        return
    page = {**_columns(sorted(examples), batch), "page": NOTICES_PER_BATCH_MAX}
    due = [_kind_of(row) for row in conn.execute(statements.KINDS_DUE, page)]
    if not due:
        return
    values = {**_columns(due, batch), "kinds_max": KINDS_PER_BUSINESS_MAX}
    stored = conn.execute(statements.STORE_KINDS, values).all()
    if stored:
        kinds = [_kind_of(row) for row in stored]
        publish(conn, [_notice(kind, examples[kind]) for kind in kinds], stored[0].told_at)


def _examples(batch: PreparedBatch) -> Iterator[_Example]:
    for event in batch.events.values():
        if event[5] is not None:
            yield _Example(event.keyed, event[5], "kept_free")
    for refusal in batch.refusals:
        if isinstance(refusal.error, UnpricedEventError):
            yield _Example(refusal.keyed, refusal.error, "refused")


def _kind(example: _Example) -> _Kind:
    keyed, error, _ = example
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


def _notice(kind: _Kind, example: _Example) -> Notice:
    data = {
        "reason": kind.reason,
        "detail": storable(example.error.message),
        "outcome": example.outcome,
        "event_name": kind.event_name,
        "meter_id": kind.meter_id or None,
        "event_id": storable(example.keyed.event_id),
        "customer_id": storable(example.keyed.customer_id),
        "timestamp": example.keyed.event_at,
    }
    return Notice(kind.business_id, "usage.unpriced", data)
