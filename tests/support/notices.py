"""Checks the webhooks of a test against the description of the API."""

from typing import get_args

from pydantic import ValidationError

from api.notices import SHAPES
from metering.webhook.outbox import WebhookType
from support.tenant import Shop


def undescribed(shop: Shop) -> list[str]:
    """Return the differences between the outbox of a business and the description."""
    rows = shop.rows(
        "SELECT type, CAST(data AS text) FROM webhook_events"
        f" WHERE business_id = '{shop.business_id}'"
    )
    return [problem for type_, data in rows if (problem := _problem(str(type_), str(data)))]


def _problem(type_: str, data: str) -> str | None:
    if type_ not in get_args(WebhookType):
        return f"{type_} is no type"
    if type_ not in SHAPES:
        return f"{type_} is not described: add its shape to api/notices.py"
    shape, _ = SHAPES[type_]
    try:
        shape.model_validate_json(data, extra="forbid")
    except ValidationError as error:
        return f"{type_}: {error}"
    return None
