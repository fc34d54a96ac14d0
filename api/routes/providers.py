"""Payment providers: their signed webhooks, and what became of each."""

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.auth import NOBODY
from api.body import read_body
from api.context import Context
from api.errors import ErrorBody
from api.idempotency import REPEATABLE
from api.paging import Page, Paged
from api.parameters import TextQuery, number_of
from api.tenant import Reader, Tenant, Writer
from api.views import Number, View
from metering.clock import Moment
from metering.errors import BadSignatureError
from metering.fields import Filled255
from metering.ids import AccountId, ProviderEventNumber
from metering.payment.inbox import (
    REPLAY_MAX,
    EventFilter,
    EventStatus,
    ProviderEvent,
    Replay,
    Verified,
    page_of_events,
    receive,
    replay,
    verified,
)
from metering.payment.provider_account import AccountProvider, WebhookSource, webhook_source
from metering.purchase.reversal_target import Provider
from worker.metrics import PROVIDER_WEBHOOKS

router: Final = APIRouter(tags=["providers"])

# A provider's webhook has a few KiB; anybody may send one.
PROVIDER_BODY_BYTES_MAX: Final = 1 << 20


class Taken(BaseModel):
    """The webhook is stored, and processed later."""

    received: bool = True


class ProviderEventOut(View):
    """A verified webhook and what became of it.

    `received`: it waits to be processed; `applied`: the ledger follows it; `parked`: its payment
    cannot be matched, or is a duplicate, too small or in another currency, or a person has to enter
    the amount of a lost dispute, or only an earlier version knew its provider; `ignored`: it has no
    effect, because it is `not_about_a_payment`, or is `told_by_the_payment` or that `nothing_paid`
    or `nothing_captured`; `failed`: see `reason`.
    """

    id: Number = Field(validation_alias="event_number")
    account_id: AccountId
    provider: Provider
    provider_event_id: str
    type: str | None
    status: EventStatus
    reason: str | None
    payment_id: str | None
    attempts: int
    received_at: datetime
    processed_at: datetime | None


class EventReplayRequest(BaseModel):
    """Which events to process again: one, those of a payment, or all parked and failed ones.

    With an `id` the other fields do not matter. `before`: only events that were processed before
    that moment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)] | None = None
    payment_id: Filled255 | None = None
    before: Moment | None = None


class EventsReplayed(BaseModel):
    """How many events are processed again; `has_more`: call again with the same `before`.

    Without `before`, the next call would count those that were parked again meanwhile.
    """

    replayed_count: int
    has_more: bool


def _source(
    context: Context,
    provider: Annotated[AccountProvider, Path()],
    account: Annotated[
        AccountId | None,
        Query(min_length=1, max_length=64, description="Needed if several are connected."),
    ] = None,
) -> WebhookSource:
    """Look up the account that the webhook claims to be for, before its body is read."""
    try:
        with context.sessions.tenant(NOBODY) as conn:
            return webhook_source(conn, provider, account)
    except BadSignatureError:
        PROVIDER_WEBHOOKS.labels(provider, "refused").inc()
        raise


async def _raw(request: Request, _source: Annotated[WebhookSource, Depends(_source)]) -> bytes:
    return await read_body(request, PROVIDER_BODY_BYTES_MAX)


def _verified(
    request: Request,
    source: Annotated[WebhookSource, Depends(_source)],
    raw: Annotated[bytes, Depends(_raw)],
) -> Verified:
    try:
        return verified(source, raw, request.headers)
    except BadSignatureError:
        PROVIDER_WEBHOOKS.labels(source.provider, "refused").inc()
        raise


_BODY: Final = {
    "requestBody": {
        "required": True,
        "description": "As the provider sends it: the signature covers these very bytes.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}
_UNSIGNED: Final[dict[int | str, dict[str, Any]]] = {
    401: {"model": ErrorBody, "description": "The signature is missing, wrong or stale."}
}


@router.post(
    "/providers/{provider}/webhooks",
    openapi_extra=_BODY,
    responses=_UNSIGNED,
    dependencies=REPEATABLE,
)
def take_webhook(context: Context, webhook: Annotated[Verified, Depends(_verified)]) -> Taken:
    """Store a webhook with a valid signature, once, however often it is sent. Needs no key."""
    source = webhook.source
    number = Tenant(context, source.business_id).run(lambda conn, _: receive(conn, webhook))
    outcome = "repeated" if number is None else "stored"
    PROVIDER_WEBHOOKS.labels(source.provider, outcome).inc()
    return Taken()


@router.get("/provider-events", response_model=Page[ProviderEventOut])
def list_provider_events(
    tenant: Reader,
    paged: Paged,
    status: Annotated[EventStatus | None, Query()] = None,
    payment_id: TextQuery = None,
) -> Page[ProviderEvent]:
    """List the webhooks of providers, newest first."""
    wanted = EventFilter(status=status, payment_id=payment_id)
    return Page(items=tenant.run(page_of_events, wanted, **paged.rows(_number)))


def _number(text: str) -> ProviderEventNumber:
    return ProviderEventNumber(number_of("provider event", text))


@router.post("/provider-events/replay", dependencies=REPEATABLE)
def replay_provider_events(tenant: Writer, wanted: EventReplayRequest) -> EventsReplayed:
    """Process events again; nothing is counted twice."""
    selection = Replay(
        event_number=None if wanted.id is None else _number(wanted.id),
        payment_id=wanted.payment_id,
        before=wanted.before,
    )
    count = tenant.run(replay, selection)
    return EventsReplayed(replayed_count=count, has_more=count >= REPLAY_MAX)
