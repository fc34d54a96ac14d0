"""Deliveries that were given up, and sending again: dead ones, delivered ones, missed ones."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from metering.errors import FieldProblem, InvalidInputError
from metering.ids import BusinessId, EndpointId, WebhookEventId
from metering.webhook import statements
from metering.webhook.retry import ATTEMPTS_PER_ROUND

# Of one call: its rows stay locked until the commit. A larger replay calls again.
REPLAY_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A delivery that was given up, with its last attempt."""

    webhook_event_id: WebhookEventId
    endpoint_id: EndpointId
    type: str
    occurred_at: datetime
    attempt: int | None
    attempted_at: datetime | None
    status_code: int | None
    error: str | None


def dead_letters(
    conn: Connection,
    business_id: BusinessId,
    limit: int,
    after: tuple[WebhookEventId, EndpointId] | None = None,
) -> list[DeadLetter]:
    """Return up to `limit` dead deliveries of this business, oldest event first.

    `after`: the ids of the last row of the page before.
    """
    after_event_id, after_endpoint_id = after or ("", "")
    rows = conn.execute(
        statements.DEAD_LETTERS,
        {
            "business_id": business_id,
            "after_event_id": after_event_id,
            "after_endpoint_id": after_endpoint_id,
            "page": limit,
        },
    )
    return [DeadLetter(**row) for row in rows.mappings()]


def replay(
    conn: Connection,
    *,
    business_id: BusinessId | None = None,
    webhook_event_id: WebhookEventId | None = None,
    endpoint_id: EndpointId | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> int:
    """Make deliveries due again, whatever became of them; return how many (`REPLAY_MAX` at most).

    All conditions given must hold; `since` ≤ when the event happened < `until`. They go out with
    the same id and body, and with the whole schedule of retries before them: their attempts count
    on at the next multiple of `retry.ATTEMPTS_PER_ROUND`. What is in flight or due is left alone,
    so the call can be repeated until it returns 0.

    With an endpoint and either an event or `since`, that endpoint also gets the events that it
    missed while it was disabled or did not exist yet. To a disabled endpoint nothing is sent
    before it is enabled. A tenant's own call gives its `business_id`.

    Raises:
        InvalidInputError: neither an event, an endpoint nor `since` was given.

    """
    if webhook_event_id is None and endpoint_id is None and since is None:
        raise InvalidInputError(
            FieldProblem("since", "give an event, an endpoint or a time to replay from")
        )
    conditions = {
        "business_id": business_id,
        "webhook_event_id": webhook_event_id,
        "endpoint_id": endpoint_id,
        "since": since,
        "until": until,
        "replay_max": REPLAY_MAX,
    }
    again = conn.execute(
        statements.REPLAY, {**conditions, "attempts_per_round": ATTEMPTS_PER_ROUND}
    ).rowcount
    if endpoint_id is None or (webhook_event_id is None and since is None):
        return again
    conditions["replay_max"] = REPLAY_MAX - again
    return again + conn.execute(statements.REPLAY_MISSED, conditions).rowcount
