"""Payment providers: their webhooks in, proved by signature; and what became of each."""

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlalchemy import Connection

from api.auth import NOBODY, Reader, Writer
from api.body import read_body
from api.context import REPEATABLE, Scoped
from api.errors import ErrorBody
from api.paging import Page, Paged
from metering.clock import Moment
from metering.errors import BadSignatureError, NotFoundError
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
from worker.metrics import PROVIDER_WEBHOOKS

router: Final = APIRouter(tags=["providers"])

ID_DIGITS_MAX: Final = 18
# A webhook of a provider has some KiB; anybody may send one.
PROVIDER_BODY_BYTES_MAX: Final = 1 << 20


class Taken(BaseModel):
    """The webhook is kept; what follows from it comes later."""

    received: bool = True


class ProviderEventOut(BaseModel):
    """A verified webhook and what became of it.

    `received`: it waits to be processed; `applied`: the ledger follows it; `parked`: nobody knows
    what its payment is for, or it was paid twice, too little or in another currency, or a person
    has to say the sum of a lost dispute; `ignored`: nothing follows from it, because it is
    `not_about_a_payment`, or is `told_by_the_payment` or that `nothing_paid` or `nothing_captured`;
    `failed`: see `reason`.
    """

    id: str
    account_id: AccountId
    provider: AccountProvider
    provider_event_id: str
    type: str | None
    status: EventStatus
    reason: str | None
    payment_id: str | None
    attempts: int
    received_at: datetime
    processed_at: datetime | None


class EventReplayRequest(BaseModel):
    """Which events are processed anew: one, those of a payment, or all parked and failed ones.

    An `id` decides alone. `before`: otherwise only what was processed before that moment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)] | None = None
    payment_id: Filled255 | None = None
    before: Moment | None = None


class EventsReplayed(BaseModel):
    """How many events are processed anew; `has_more`: as many as one call takes, so call again.

    With the same `before`, so that none is counted again that has been parked again meanwhile.
    """

    replayed_count: int
    has_more: bool


def _out(event: ProviderEvent) -> ProviderEventOut:
    return ProviderEventOut(
        id=str(event.event_number),
        account_id=event.account_id,
        provider=event.provider,
        provider_event_id=event.provider_event_id,
        type=event.type,
        status=event.status,
        reason=event.reason,
        payment_id=event.payment_id,
        attempts=event.attempts,
        received_at=event.received_at,
        processed_at=event.processed_at,
    )


def _source(
    request: Request,
    scope: Scoped,
    provider: Annotated[AccountProvider, Path()],
    account: Annotated[
        AccountId | None,
        Query(min_length=1, max_length=64, description="Needed where several are connected."),
    ] = None,
) -> WebhookSource:
    """Look up whose webhook this would be, before a byte of its body is read."""
    request.state.repeatable = True
    try:
        with scope.sessions.tenant(NOBODY) as conn:
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
        "description": "As the provider sends it: the signature is that of its very bytes.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}
_UNSIGNED: Final[dict[int | str, dict[str, Any]]] = {
    401: {"model": ErrorBody, "description": "The signature is missing, wrong or stale."}
}


@router.post("/providers/{provider}/webhooks", openapi_extra=_BODY, responses=_UNSIGNED)
def take_webhook(scope: Scoped, webhook: Annotated[Verified, Depends(_verified)]) -> Taken:
    """Keep a webhook that its signature proves; once, however often it comes. Needs no key."""
    number = scope.run(webhook.source.business_id, lambda conn: receive(conn, webhook))
    outcome = "repeated" if number is None else "stored"
    PROVIDER_WEBHOOKS.labels(webhook.source.provider, outcome).inc()
    return Taken()


@router.get("/provider-events")
def list_provider_events(
    caller: Reader,
    scope: Scoped,
    paged: Paged,
    status: Annotated[EventStatus | None, Query()] = None,
    payment_id: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
) -> Page[ProviderEventOut]:
    """List the webhooks of providers, newest first."""
    after = None if paged.after is None else _number(paged.after)
    found = scope.run(
        caller.business_id,
        lambda conn: page_of_events(
            conn,
            caller.business_id,
            EventFilter(status=status, payment_id=payment_id),
            page=paged.size,
            offset=paged.offset,
            after=after,
        ),
    )
    return Page(items=[_out(event) for event in found])


def _number(text: str) -> ProviderEventNumber:
    if not (text.isascii() and text.isdigit() and len(text) <= ID_DIGITS_MAX):
        raise NotFoundError("provider event", text)
    return ProviderEventNumber(int(text))


@router.post("/provider-events/replay", dependencies=REPEATABLE)
def replay_provider_events(
    caller: Writer, scope: Scoped, wanted: EventReplayRequest
) -> EventsReplayed:
    """Process events anew; nothing is counted twice."""
    selection = Replay(
        event_number=None if wanted.id is None else _number(wanted.id),
        payment_id=wanted.payment_id,
        before=wanted.before,
    )

    def work(conn: Connection) -> int:
        return replay(conn, caller.business_id, selection)

    count = scope.run(caller.business_id, work)
    return EventsReplayed(replayed_count=count, has_more=count >= REPLAY_MAX)
