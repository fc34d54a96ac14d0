"""Dead letters, and the replay of deliveries: dead, delivered and missed ones."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from metering.db import rows
from metering.errors import FieldProblem, InvalidInputError
from metering.ids import BusinessId, EndpointId, WebhookEventId
from metering.webhook import statements
from metering.webhook.retry import ATTEMPTS_PER_ROUND

# Of one call, because its rows stay locked until the commit. For a larger replay call again.
REPLAY_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A delivery that was given up, with its last attempt; `error` says why that failed."""

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
    """Return up to `limit` dead letters, oldest event first, after the ids of the last row."""
    after_event_id, after_endpoint_id = after or ("", "")
    values = {
        "business_id": business_id,
        "after_event_id": after_event_id,
        "after_endpoint_id": after_endpoint_id,
        "page": limit,
    }
    return rows(DeadLetter, conn.execute(statements.DEAD_LETTERS, values))


def replay(
    conn: Connection,
    *,
    business_id: BusinessId | None = None,
    webhook_event_id: WebhookEventId | None = None,
    endpoint_id: EndpointId | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> int:
    """Make deliveries due again, in any state; return how many (`REPLAY_MAX` at most).

    All given conditions must hold; `since` ≤ when the event happened < `until`. Without
    `business_id` it is for all businesses. The deliveries go out with the same id and body and get
    the whole schedule of retries again: their attempts continue at the next multiple of
    `retry.ATTEMPTS_PER_ROUND`. Deliveries in flight or due are left alone, so the call can be
    repeated until it returns 0.

    With an endpoint and either an event or `since`, the endpoint also gets the events that it
    missed because it was disabled or did not exist yet. A disabled endpoint receives nothing until
    it is enabled.

    Raises: InvalidInputError if there is no event, no endpoint and no `since`.
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
