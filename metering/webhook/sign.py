"""The request of an attempt: envelope and headers of Standard Webhooks.

The body depends on the event alone, so every attempt sends the same bytes. The timestamp of the
attempt differs, and with it the signature.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import orjson
from standardwebhooks import Webhook

from metering.clock import to_wire
from metering.ids import BusinessId, WebhookEventId

USER_AGENT: Final = "Gullak-Webhooks/1"


def envelope(business_id: BusinessId, type_: str, occurred_at: datetime, data_json: str) -> bytes:
    """Return the body: JSON in UTF-8, with the JSON text of the outbox unchanged."""
    head = orjson.dumps(
        {"business_id": business_id, "type": type_, "timestamp": to_wire(occurred_at)}
    )
    return b'%b,"data":%b}' % (head[:-1], data_json.encode())


def signed_headers(
    webhook_event_id: WebhookEventId,
    attempted_at: datetime,
    body: bytes,
    *,
    secrets: Sequence[str],
    extra: Mapping[str, str],
) -> list[tuple[str, str]]:
    """Return the headers of an attempt, with one signature for each secret, the newest first.

    `extra`: headers of the endpoint. `endpoints` refuses those that the sender sets.
    """
    text = body.decode()
    signatures = (Webhook(secret).sign(webhook_event_id, attempted_at, text) for secret in secrets)
    return [
        *extra.items(),
        ("content-type", "application/json"),
        ("user-agent", USER_AGENT),
        ("webhook-id", webhook_event_id),
        ("webhook-timestamp", str(int(attempted_at.timestamp()))),
        ("webhook-signature", " ".join(signatures)),
    ]
