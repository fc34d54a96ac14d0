"""Webhook endpoints: their addresses, the types each one receives, and the secrets that sign."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import Connection

from api.idempotency import Idempotent
from api.paging import PAGE_SIZE_MAX, Page, Paged
from api.parameters import EndpointPath
from api.tenant import Reader, Tenant, Writer
from api.views import Happened, View
from metering.clock import Moment, to_wire
from metering.errors import FieldProblem, InvalidInputError
from metering.ids import BusinessId, EndpointId, WebhookEventId
from metering.webhook.dead_letter import replay
from metering.webhook.deliveries import Delivery, DeliveryState, page_of_deliveries, send_test
from metering.webhook.endpoints import (
    Endpoint,
    EndpointChange,
    HeaderChange,
    NewEndpoint,
    change_endpoint,
    change_headers,
    create_endpoint,
    delete_endpoint,
    endpoint_secret,
    get_endpoint,
    list_endpoints,
)
from worker.context import reach_of

router: Final = APIRouter(prefix="/webhooks", tags=["webhooks"])

# The value of a header whose name holds one of these is a credential, and is never shown again.
_SENSITIVE: Final = ("auth", "cookie", "key", "password", "secret", "signature", "token")

WireTime = Annotated[str, BeforeValidator(to_wire)]


class WebhookDetails(View):
    """An endpoint. `filter_types` null: it receives all types."""

    id: str = Field(validation_alias="endpoint_id")
    url: str
    description: Annotated[str, BeforeValidator(lambda text: text or "")]
    metadata: dict[str, str]
    created_at: WireTime
    updated_at: WireTime
    disabled: Happened = Field(validation_alias="disabled_at")
    disabled_reason: str | None
    failures_in_row: int
    failing_since: datetime | None
    filter_types: list[str] | None
    rate_limit: None = None


class WebhookPage(BaseModel):
    """Endpoints, oldest first; `iterator` leads to the next ones."""

    data: list[WebhookDetails]
    done: bool
    iterator: str | None
    prev_iterator: None = None


class Secret(BaseModel):
    """The signing secret: `whsec_` and base64."""

    secret: str


class Headers(BaseModel):
    """The headers of every call; the values of those in `sensitive` are not shown."""

    headers: dict[str, str]
    sensitive: list[str]


class ReplayRequest(BaseModel):
    """Which events to send again: `since` ≤ when they happened < `until`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: Moment
    until: Moment | None = None


class DeliveryOut(View):
    """The delivery of an event to an endpoint; `id` is the event's, in its `webhook-id` header.

    `attempts` start again at 0 with a replay. `next_attempt_at`: null if there will be none, in the
    past if it is due. `last_status_code`: the response to the last attempt; `last_error`: why it
    failed, such as "answered 500".
    """

    id: WebhookEventId = Field(validation_alias="webhook_event_id")
    type: str
    occurred_at: datetime
    status: Literal["pending", "delivered", "dead"]
    attempts: int
    next_attempt_at: datetime | None
    delivered_at: datetime | None
    last_attempt_at: datetime | None
    last_status_code: int | None
    last_error: str | None


class TestSent(BaseModel):
    """The id of the event that was sent, in the header `webhook-id`."""

    id: WebhookEventId


class Replayed(BaseModel):
    """How many deliveries are due again; call until it is 0."""

    replayed_count: int


def _shown(headers: Mapping[str, str]) -> Headers:
    hidden = [name for name in headers if any(part in name.lower() for part in _SENSITIVE)]
    shown = {name: value for name, value in headers.items() if name not in hidden}
    return Headers(headers=shown, sensitive=sorted(hidden))


@router.post("", response_model=WebhookDetails)
def make_webhook(tenant: Writer, new: NewEndpoint, idempotency: Idempotent) -> Endpoint:
    """Create an endpoint with a new secret; it receives what happens from now on.

    An address that is not public is refused, because no call would be made to it.
    """
    idempotency.by(new.idempotency_key)
    _check_reach(tenant, new.url)
    return tenant.run(create_endpoint, new)


def _check_reach(tenant: Tenant, url: str | None) -> None:
    """Raise InvalidInputError for an address to which no call would be made."""
    if url and (reason := reach_of(tenant.context.settings).refusal_of(url)):
        raise InvalidInputError(FieldProblem("url", reason))


@router.get("")
def list_webhooks(
    tenant: Reader,
    limit: Annotated[int, Query(ge=1, le=PAGE_SIZE_MAX)] = 50,
    iterator: Annotated[EndpointId | None, Query(min_length=1, max_length=64)] = None,
) -> WebhookPage:
    """List endpoints, oldest first."""
    found = tenant.run(list_endpoints, limit=limit + 1, after=iterator)
    shown = found[:limit]
    return WebhookPage(
        data=[WebhookDetails.model_validate(endpoint) for endpoint in shown],
        done=len(found) <= limit,
        iterator=shown[-1].endpoint_id if shown else None,
    )


@router.get("/{webhook_id}", response_model=WebhookDetails)
def show_webhook(tenant: Reader, webhook_id: EndpointPath) -> Endpoint:
    """Return one endpoint."""
    return tenant.run(get_endpoint, webhook_id)


@router.patch("/{webhook_id}", response_model=WebhookDetails)
def change_webhook(tenant: Writer, webhook_id: EndpointPath, change: EndpointChange) -> Endpoint:
    """Change the given fields of an endpoint; enabling it sends the events that wait."""
    _check_reach(tenant, change.url)
    return tenant.run(change_endpoint, webhook_id, change)


@router.delete("/{webhook_id}", status_code=204, response_class=Response)
def delete_webhook(tenant: Writer, webhook_id: EndpointPath) -> None:
    """Delete an endpoint and its deliveries."""
    tenant.run(delete_endpoint, webhook_id)


# The holder of a secret can forge our calls: to read it takes the permission to write.
@router.get("/{webhook_id}/secret")
def show_secret(tenant: Writer, webhook_id: EndpointPath) -> Secret:
    """Return the signing secret."""
    return Secret(secret=tenant.run(endpoint_secret, webhook_id))


@router.get("/{webhook_id}/headers")
def show_headers(tenant: Reader, webhook_id: EndpointPath) -> Headers:
    """Return the headers of every call, without the values of credentials."""
    return _shown(tenant.run(get_endpoint, webhook_id).headers)


@router.patch("/{webhook_id}/headers", status_code=204, response_class=Response)
def set_headers(tenant: Writer, webhook_id: EndpointPath, change: HeaderChange) -> None:
    """Set headers; an empty value removes one."""
    tenant.run(change_headers, webhook_id, change)


@router.get("/{webhook_id}/deliveries", response_model=Page[DeliveryOut])
def list_deliveries(
    tenant: Reader,
    webhook_id: EndpointPath,
    paged: Paged,
    status: Annotated[
        DeliveryState | None,
        Query(
            description="`failing`: pending, with a failed attempt; `undelivered`: pending or dead."
            " Left out: all."
        ),
    ] = None,
) -> Page[Delivery]:
    """List the deliveries to an endpoint, past and future, newest event first."""

    def work(conn: Connection, business_id: BusinessId) -> list[Delivery]:
        get_endpoint(conn, business_id, webhook_id)
        rows = paged.rows(WebhookEventId)
        return page_of_deliveries(conn, business_id, endpoint_id=webhook_id, state=status, **rows)

    return Page(items=tenant.run(work))


@router.post("/{webhook_id}/test")
def send_test_webhook(tenant: Writer, webhook_id: EndpointPath) -> TestSent:
    """Send a `webhook.test` to an endpoint; its delivery shows whether it arrived."""
    return TestSent(id=tenant.run(send_test, webhook_id))


@router.post("/{webhook_id}/replay")
def replay_webhook(tenant: Writer, webhook_id: EndpointPath, wanted: ReplayRequest) -> Replayed:
    """Send the events of a period again, with the same ids, even those that were never sent."""

    def work(conn: Connection, business_id: BusinessId) -> int:
        get_endpoint(conn, business_id, webhook_id)
        return replay(
            conn,
            business_id=business_id,
            endpoint_id=webhook_id,
            since=wanted.since,
            until=wanted.until,
        )

    return Replayed(replayed_count=tenant.run(work))
