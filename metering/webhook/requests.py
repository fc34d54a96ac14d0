"""Requests for webhook endpoints: create once per idempotency key, change in parts."""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Connection

from metering import locks
from metering.fields import NO_NUL, Filled255
from metering.idempotency import digest_of, first_answer
from metering.ids import BusinessId, EndpointId
from metering.webhook import statements
from metering.webhook.endpoints import (
    DESCRIPTION_CHARS_MAX,
    ENTRIES_MAX,
    URL_CHARS_MAX,
    Endpoint,
    create_endpoint,
    disable_endpoint,
    enable_endpoint,
    get_endpoint,
    update_endpoint,
)

_MODEL: Final = ConfigDict(extra="forbid", frozen=True)

Text = Annotated[str, StringConstraints(strict=True, pattern=NO_NUL)]
Url = Annotated[str, StringConstraints(strict=True, pattern=NO_NUL, max_length=URL_CHARS_MAX)]
Description = Annotated[
    str, StringConstraints(strict=True, pattern=NO_NUL, max_length=DESCRIPTION_CHARS_MAX)
]
Switch = Annotated[bool, Field(strict=True)]
Pairs = Annotated[dict[Text, Text], Field(max_length=ENTRIES_MAX)]
Types = Annotated[list[Text], Field(max_length=100)]
# Deliveries are not throttled, so a limit is refused: to ignore it would be a false promise.
NoLimit = Annotated[None, Field(description="Not offered: leave it out.")]


class NewEndpoint(BaseModel):
    """A request for an endpoint. Without `filter_types` it receives all types."""

    model_config = _MODEL

    url: Url
    description: Description | None = None
    disabled: Switch | None = None
    filter_types: Types | None = None
    headers: Pairs | None = None
    metadata: Pairs | None = None
    rate_limit: NoLimit = None
    idempotency_key: Filled255 | None = None


class EndpointChange(BaseModel):
    """A change of an endpoint. A field that is left out or null stays as it is."""

    model_config = _MODEL

    url: Url | None = None
    description: Description | None = None
    disabled: Switch | None = None
    filter_types: Types | None = None
    metadata: Pairs | None = None
    rate_limit: NoLimit = None


class HeaderChange(BaseModel):
    """Headers to set. An empty value removes a header; the others stay."""

    model_config = _MODEL

    headers: Pairs


def make_endpoint(conn: Connection, business_id: BusinessId, new: NewEndpoint) -> Endpoint:
    """Create an endpoint, once per idempotency key.

    Raises: IdempotencyConflictError if the key came with another request; see `create_endpoint`.
    """
    key, digest = new.idempotency_key, digest_of(new.model_dump_json().encode())
    first = first_answer(
        conn, business_id, key, digest, lock=locks.ENDPOINT_KEY, find=statements.ENDPOINT_BY_KEY
    )
    if first is not None:
        return get_endpoint(conn, business_id, first.endpoint_id)
    made = create_endpoint(
        conn,
        business_id,
        new.url,
        description=new.description,
        filter_types=new.filter_types,
        headers=new.headers,
        metadata=new.metadata,
    )
    if key is not None:
        values = {"endpoint_id": made.endpoint_id, "idempotency_key": key, "digest": digest}
        conn.execute(statements.NOTE_REQUEST, {"business_id": business_id, **values})
    return disable_endpoint(conn, business_id, made.endpoint_id) if new.disabled else made


def change_endpoint(
    conn: Connection, business_id: BusinessId, endpoint_id: EndpointId, change: EndpointChange
) -> Endpoint:
    """Change parts of an endpoint. An empty `filter_types` means all types again.

    Raises: NotFoundError if the business has no such endpoint; see `create_endpoint`.
    """
    now = _locked(conn, business_id, endpoint_id)
    changed = update_endpoint(
        conn,
        business_id,
        endpoint_id,
        url=now.url if change.url is None else change.url,
        description=now.description if change.description is None else change.description,
        filter_types=now.filter_types if change.filter_types is None else change.filter_types,
        headers=now.headers,
        metadata=now.metadata if change.metadata is None else change.metadata,
    )
    if change.disabled is None:
        return changed
    switch = disable_endpoint if change.disabled else enable_endpoint
    return switch(conn, business_id, endpoint_id)


def change_headers(
    conn: Connection, business_id: BusinessId, endpoint_id: EndpointId, change: HeaderChange
) -> Endpoint:
    """Set or remove headers of an endpoint.

    Raises: NotFoundError if the business has no such endpoint; see `create_endpoint`.
    """
    now = _locked(conn, business_id, endpoint_id)
    merged: Mapping[str, str] = {**now.headers, **change.headers}
    return update_endpoint(
        conn,
        business_id,
        endpoint_id,
        url=now.url,
        description=now.description,
        filter_types=now.filter_types,
        headers={name: value for name, value in merged.items() if value},
        metadata=now.metadata,
    )


def _locked(conn: Connection, business_id: BusinessId, endpoint_id: EndpointId) -> Endpoint:
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    conn.execute(statements.LOCK_ENDPOINT, key)
    return get_endpoint(conn, business_id, endpoint_id)
