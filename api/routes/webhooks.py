"""Webhook endpoints: where a business is told, of what, and the secret that signs it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from api.auth import Reader, Writer
from api.context import ApiScope, Scoped
from api.paging import PAGE_SIZE_MAX, Page, Paged
from metering.clock import Moment, to_wire
from metering.errors import FieldProblem, InvalidInputError
from metering.ids import EndpointId, WebhookEventId
from metering.webhook.dead_letter import replay
from metering.webhook.deliveries import Delivery, DeliveryState, page_of_deliveries, send_test
from metering.webhook.endpoints import (
    Endpoint,
    delete_endpoint,
    endpoint_secret,
    get_endpoint,
    list_endpoints,
)
from metering.webhook.requests import (
    EndpointChange,
    HeaderChange,
    NewEndpoint,
    change_endpoint,
    change_headers,
    make_endpoint,
)
from worker.local.receivers import reach_of

router: Final = APIRouter(prefix="/webhooks", tags=["webhooks"])

EndpointPath = Annotated[EndpointId, Path(min_length=1, max_length=64)]
# Parts of the names of headers whose values are credentials: those are never shown again.
_SENSITIVE: Final = ("auth", "cookie", "key", "password", "secret", "signature", "token")


class WebhookDetails(BaseModel):
    """An endpoint. `filter_types` null: it is told of everything."""

    id: str
    url: str
    description: str
    metadata: dict[str, str]
    created_at: str
    updated_at: str
    disabled: bool
    disabled_reason: str | None
    failures_in_row: int
    failing_since: datetime | None
    filter_types: list[str] | None
    rate_limit: None = None


class WebhookPage(BaseModel):
    """Endpoints, oldest first; `iterator` leads to those after them."""

    data: list[WebhookDetails]
    done: bool
    iterator: str | None
    prev_iterator: None = None


class Secret(BaseModel):
    """What signs: `whsec_` and base64."""

    secret: str


class Headers(BaseModel):
    """Headers of every call; of those in `sensitive` the values are not shown."""

    headers: dict[str, str]
    sensitive: list[str]


class ReplayRequest(BaseModel):
    """Which events are sent again: `since` ≤ when they happened < `until`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: Moment
    until: Moment | None = None


class DeliveryOut(BaseModel):
    """An event on its way to an endpoint; `id` is that of the event, and of its `webhook-id`.

    `attempts` begin anew with a replay. `next_attempt_at`: null if none will be made; in the past,
    it is due. `last_error`: why the last attempt had no answer, `last_status_code`: its answer.
    """

    model_config = ConfigDict(from_attributes=True)

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


def _out(endpoint: Endpoint) -> WebhookDetails:
    types = endpoint.filter_types
    return WebhookDetails(
        id=endpoint.endpoint_id,
        url=endpoint.url,
        description=endpoint.description or "",
        metadata=dict(endpoint.metadata),
        created_at=_text(endpoint.created_at),
        updated_at=_text(endpoint.updated_at),
        disabled=endpoint.disabled_at is not None,
        disabled_reason=endpoint.disabled_reason,
        failures_in_row=endpoint.failures_in_row,
        failing_since=endpoint.failing_since,
        filter_types=None if types is None else list(types),
    )


def _text(moment: datetime) -> str:
    return to_wire(moment)


def _headers(headers: Mapping[str, str]) -> Headers:
    hidden = [name for name in headers if any(part in name.lower() for part in _SENSITIVE)]
    shown = {name: value for name, value in headers.items() if name not in hidden}
    return Headers(headers=shown, sensitive=sorted(hidden))


@router.post("")
def make_webhook(
    caller: Writer, scope: Scoped, request: Request, new: NewEndpoint
) -> WebhookDetails:
    """Make an endpoint with a new secret; it is told of what happens from now on.

    An address that is not public is refused, because nothing would be sent there.
    """
    request.state.repeatable = new.idempotency_key is not None
    _check_reach(scope, new.url)
    return _out(
        scope.run(caller.business_id, lambda conn: make_endpoint(conn, caller.business_id, new))
    )


def _check_reach(scope: ApiScope, url: str | None) -> None:
    """Refuse a receiver to which no call would ever be made.

    Raises:
        InvalidInputError: it is one.

    """
    if url and (reason := reach_of(scope.settings).refusal_of(url)):
        raise InvalidInputError(FieldProblem("url", reason))


@router.get("")
def list_webhooks(
    caller: Reader,
    scope: Scoped,
    limit: Annotated[int, Query(ge=1, le=PAGE_SIZE_MAX)] = 50,
    iterator: Annotated[str | None, Query(min_length=1, max_length=64)] = None,
) -> WebhookPage:
    """List endpoints, oldest first."""
    after = None if iterator is None else EndpointId(iterator)
    found = scope.run(
        caller.business_id,
        lambda conn: list_endpoints(conn, caller.business_id, limit=limit + 1, after=after),
    )
    shown = found[:limit]
    return WebhookPage(
        data=[_out(endpoint) for endpoint in shown],
        done=len(found) <= limit,
        iterator=shown[-1].endpoint_id if shown else None,
    )


@router.get("/{webhook_id}")
def show_webhook(caller: Reader, scope: Scoped, webhook_id: EndpointPath) -> WebhookDetails:
    """Return one endpoint."""
    return _out(
        scope.run(
            caller.business_id, lambda conn: get_endpoint(conn, caller.business_id, webhook_id)
        )
    )


@router.patch("/{webhook_id}")
def change_webhook(
    caller: Writer, scope: Scoped, webhook_id: EndpointPath, change: EndpointChange
) -> WebhookDetails:
    """Change parts of an endpoint; enabling it sends what waited."""
    _check_reach(scope, change.url)
    return _out(
        scope.run(
            caller.business_id,
            lambda conn: change_endpoint(conn, caller.business_id, webhook_id, change),
        )
    )


@router.delete("/{webhook_id}", status_code=204, response_class=Response)
def delete_webhook(caller: Writer, scope: Scoped, webhook_id: EndpointPath) -> None:
    """Forget an endpoint with its deliveries."""
    scope.run(
        caller.business_id, lambda conn: delete_endpoint(conn, caller.business_id, webhook_id)
    )


# A secret lets its holder forge what we send: to read it takes more than reading.
@router.get("/{webhook_id}/secret")
def show_secret(caller: Writer, scope: Scoped, webhook_id: EndpointPath) -> Secret:
    """Return the secret that signs."""
    found = scope.run(
        caller.business_id, lambda conn: endpoint_secret(conn, caller.business_id, webhook_id)
    )
    return Secret(secret=found)


@router.get("/{webhook_id}/headers")
def show_headers(caller: Reader, scope: Scoped, webhook_id: EndpointPath) -> Headers:
    """Return the headers of every call, without the values of credentials."""
    found = scope.run(
        caller.business_id, lambda conn: get_endpoint(conn, caller.business_id, webhook_id)
    )
    return _headers(found.headers)


@router.patch("/{webhook_id}/headers", status_code=204, response_class=Response)
def set_headers(
    caller: Writer, scope: Scoped, webhook_id: EndpointPath, change: HeaderChange
) -> None:
    """Set headers; an empty value takes one away."""
    scope.run(
        caller.business_id,
        lambda conn: change_headers(conn, caller.business_id, webhook_id, change),
    )


@router.get("/{webhook_id}/deliveries")
def list_deliveries(
    *,
    caller: Reader,
    scope: Scoped,
    webhook_id: EndpointPath,
    paged: Paged,
    status: Annotated[
        DeliveryState | None,
        Query(
            description="`failing`: pending, and tried in vain; `undelivered`: pending or dead."
            " Left out: all."
        ),
    ] = None,
) -> Page[DeliveryOut]:
    """List what was, is and will be sent to an endpoint, newest event first."""

    def work(conn: Connection) -> list[Delivery]:
        get_endpoint(conn, caller.business_id, webhook_id)
        return page_of_deliveries(
            conn,
            caller.business_id,
            endpoint_id=webhook_id,
            state=status,
            page=paged.size,
            offset=paged.offset,
            after=paged.after_as(WebhookEventId),
        )

    found = scope.run(caller.business_id, work)
    return Page(items=[DeliveryOut.model_validate(delivery) for delivery in found])


@router.post("/{webhook_id}/test")
def send_test_webhook(caller: Writer, scope: Scoped, webhook_id: EndpointPath) -> TestSent:
    """Send a `webhook.test` to an endpoint; its delivery tells whether it arrived."""
    event_id = scope.run(
        caller.business_id, lambda conn: send_test(conn, caller.business_id, webhook_id)
    )
    return TestSent(id=event_id)


@router.post("/{webhook_id}/replay")
def replay_webhook(
    caller: Writer, scope: Scoped, webhook_id: EndpointPath, wanted: ReplayRequest
) -> Replayed:
    """Send events of a time again, also those that the endpoint missed, with the same ids."""

    def work(conn: Connection) -> int:
        get_endpoint(conn, caller.business_id, webhook_id)
        return replay(
            conn,
            business_id=caller.business_id,
            endpoint_id=webhook_id,
            since=wanted.since,
            until=wanted.until,
        )

    return Replayed(replayed_count=scope.run(caller.business_id, work))
