"""Webhook endpoints: where a business receives webhooks, of which types, signed with which secret.

An endpoint is created once per idempotency key, and changed in parts. `NewEndpoint` holds the
limits of its fields. `_check` refuses values of the right form that would not work.
"""

import base64
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Final

import httpx
import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Connection, TextClause

from metering import locks
from metering.db import get_one, rows
from metering.errors import FieldProblem, InvalidInputError, NotFoundError, TooManyEndpointsError
from metering.fields import NO_NUL, Filled255
from metering.idempotency import digest_of, first_answer
from metering.ids import BusinessId, EndpointId, new_id
from metering.vault import Vault, vault_of
from metering.webhook import statements
from metering.webhook.outbox import PAYLOAD_TYPES

ENDPOINTS_MAX: Final = 50
URL_CHARS_MAX: Final = 2048
PORT_MAX: Final = 65_535
DESCRIPTION_CHARS_MAX: Final = 1000
TYPES_MAX: Final = 100
ENTRIES_MAX: Final = 50  # of headers, and of metadata
NAME_CHARS_MAX: Final = 100
VALUE_CHARS_MAX: Final = 1000
SECRET_BYTES: Final = 32
SECRET_BYTES_MIN: Final = 24
SECRET_BYTES_MAX: Final = 64
ROTATION_OVERLAP_S: Final = 86_400
ROTATION_OVERLAP_MAX_S: Final = 7 * 86_400

_KIND: Final = "webhook endpoint"
_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the public start of every secret
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_HEADER_VALUE: Final = re.compile(r"[!-~]([\t -~]*[!-~])?", re.ASCII)
# Set by the sender, or by HTTP itself: one of the endpoint's own would forge a signature or split
# a request.
_RESERVED_HEADERS: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
_RESERVED_PREFIXES: Final = ("webhook-", "proxy-")


def _short(entries: dict[str, str]) -> dict[str, str]:
    if any(len(k) > NAME_CHARS_MAX or len(v) > VALUE_CHARS_MAX for k, v in entries.items()):
        raise ValueError(f"names up to {NAME_CHARS_MAX}, values up to {VALUE_CHARS_MAX} characters")
    return entries


_MODEL: Final = ConfigDict(extra="forbid", frozen=True)

Text = Annotated[str, StringConstraints(strict=True, pattern=NO_NUL)]
Url = Annotated[str, StringConstraints(strict=True, pattern=NO_NUL, max_length=URL_CHARS_MAX)]
Description = Annotated[
    str, StringConstraints(strict=True, pattern=NO_NUL, max_length=DESCRIPTION_CHARS_MAX)
]
Switch = Annotated[bool, Field(strict=True)]
Pairs = Annotated[dict[Text, Text], Field(max_length=ENTRIES_MAX), AfterValidator(_short)]
Types = Annotated[list[Text], Field(max_length=TYPES_MAX)]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint without its secret. `filter_types` is None for all types."""

    endpoint_id: EndpointId
    business_id: BusinessId
    url: str
    description: str | None
    filter_types: Sequence[str] | None
    # Names and values can be credentials of the receiver.
    headers: Mapping[str, str] = field(repr=False)
    metadata: Mapping[str, str]
    disabled_at: datetime | None
    disabled_reason: str | None
    failures_in_row: int
    failing_since: datetime | None
    created_at: datetime
    updated_at: datetime


def create_endpoint(conn: Connection, business_id: BusinessId, new: NewEndpoint) -> Endpoint:
    """Create an endpoint with a new secret, once per idempotency key.

    It receives what happens from now on.

    Raises: IdempotencyConflictError if the key came with another request; InvalidInputError;
    TooManyEndpointsError if there are `ENDPOINTS_MAX` already.
    """
    key, digest = new.idempotency_key, digest_of(new.model_dump_json().encode())
    first = first_answer(
        conn, business_id, key, digest, lock=locks.ENDPOINT_KEY, find=statements.ENDPOINT_BY_KEY
    )
    if first is not None:
        return get_endpoint(conn, business_id, first.endpoint_id)
    endpoint_id, vault = EndpointId(new_id("whk")), vault_of(conn)
    values = {
        **_columns(vault, new),
        "endpoint_id": endpoint_id,
        "business_id": business_id,
        "secret": vault.seal(new_secret()),
        "idempotency_key": key,
        "digest": None if key is None else digest,
        "endpoints_max": ENDPOINTS_MAX,
    }
    if not conn.execute(statements.INSERT_ENDPOINT, values).rowcount:
        raise TooManyEndpointsError(ENDPOINTS_MAX)
    made = disable_endpoint if new.disabled else get_endpoint
    return made(conn, business_id, endpoint_id)


def get_endpoint(conn: Connection, business_id: BusinessId, endpoint_id: EndpointId) -> Endpoint:
    """Return an endpoint. Raises: NotFoundError if the business has no such endpoint."""
    return _one(conn, statements.ENDPOINT, business_id, endpoint_id)


def list_endpoints(
    conn: Connection, business_id: BusinessId, *, limit: int, after: EndpointId | None = None
) -> list[Endpoint]:
    """Return up to `limit` endpoints that come after `after`, oldest first."""
    page = {"business_id": business_id, "after": after or "", "page": limit}
    return rows(partial(_endpoint, vault_of(conn)), conn.execute(statements.ENDPOINTS, page))


def change_endpoint(
    conn: Connection, business_id: BusinessId, endpoint_id: EndpointId, change: EndpointChange
) -> Endpoint:
    """Change parts of an endpoint. An empty `filter_types` means all types again.

    The next attempts use the changed endpoint, also those for older events.

    Raises: NotFoundError if the business has no such endpoint; InvalidInputError.
    """
    now = _one(conn, statements.LOCK_ENDPOINT, business_id, endpoint_id)
    changes = change.model_dump(exclude_none=True, exclude={"disabled"})
    changed = _update(conn, replace(now, **changes))
    if change.disabled is None:
        return changed
    switch = disable_endpoint if change.disabled else enable_endpoint
    return switch(conn, business_id, endpoint_id)


def change_headers(
    conn: Connection, business_id: BusinessId, endpoint_id: EndpointId, change: HeaderChange
) -> Endpoint:
    """Set or remove headers of an endpoint.

    Raises: NotFoundError if the business has no such endpoint; InvalidInputError.
    """
    now = _one(conn, statements.LOCK_ENDPOINT, business_id, endpoint_id)
    merged = {**now.headers, **change.headers}
    headers = {name: value for name, value in merged.items() if value}
    return _update(conn, replace(now, headers=headers))


def _update(conn: Connection, wanted: Endpoint) -> Endpoint:
    columns = _columns(vault_of(conn), wanted)
    return _one(conn, statements.UPDATE_ENDPOINT, wanted.business_id, wanted.endpoint_id, **columns)


def disable_endpoint(
    conn: Connection, business_id: BusinessId, endpoint_id: EndpointId
) -> Endpoint:
    """Stop sending to an endpoint. Pending deliveries wait; new events make no delivery.

    `dead_letter.replay` with a time sends the events that it missed.

    Raises: NotFoundError if the business has no such endpoint.
    """
    return _one(conn, statements.DISABLE_ENDPOINT, business_id, endpoint_id, reason="by its owner")


def enable_endpoint(conn: Connection, business_id: BusinessId, endpoint_id: EndpointId) -> Endpoint:
    """Send to an endpoint again, first the deliveries that waited. Its failures are forgotten.

    Raises: NotFoundError if the business has no such endpoint.
    """
    return _one(conn, statements.ENABLE_ENDPOINT, business_id, endpoint_id)


def delete_endpoint(conn: Connection, business_id: BusinessId, endpoint_id: EndpointId) -> None:
    """Delete an endpoint, its deliveries and their attempts. The events stay.

    Raises: NotFoundError if the business has no such endpoint.
    """
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    if not conn.execute(statements.DELETE_ENDPOINT, key).rowcount:
        raise NotFoundError(_KIND, endpoint_id)


def endpoint_secret(conn: Connection, business_id: BusinessId, endpoint_id: EndpointId) -> str:
    """Return the signing secret. Raises: NotFoundError if the business has no such endpoint."""
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    secret = conn.execute(statements.ENDPOINT_SECRET, key).scalar_one_or_none()
    if secret is None:
        raise NotFoundError(_KIND, endpoint_id)
    return vault_of(conn).open(secret)


def rotate_secret(
    conn: Connection,
    business_id: BusinessId,
    endpoint_id: EndpointId,
    *,
    secret: str | None = None,
    overlap_s: int = ROTATION_OVERLAP_S,
) -> str:
    """Sign with `secret` (default: a new one) from now on, and return it.

    The old secret signs too for `overlap_s` seconds, so that receivers can change over. Give 0 if
    it has leaked.

    Raises: NotFoundError if the business has no such endpoint; InvalidInputError.
    """
    if not 0 <= overlap_s <= ROTATION_OVERLAP_MAX_S:
        raise InvalidInputError(
            FieldProblem("overlap_s", f"must be from 0 to {ROTATION_OVERLAP_MAX_S}")
        )
    secret = new_secret() if secret is None else _checked_secret(secret)
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    values = {**key, "secret": vault_of(conn).seal(secret), "overlap_s": overlap_s}
    if not conn.execute(statements.ROTATE_SECRET, values).rowcount:
        raise NotFoundError(_KIND, endpoint_id)
    return secret


def new_secret() -> str:
    """Return `whsec_` and base64 of random bytes."""
    return _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _checked_secret(secret: str) -> str:
    """Return the secret if it is well-formed. The error never quotes it."""
    prefix, encoded = secret[: len(_SECRET_PREFIX)], secret[len(_SECRET_PREFIX) :]
    try:
        size = len(base64.b64decode(encoded, validate=True))
    except ValueError:
        size = 0
    if prefix != _SECRET_PREFIX or not SECRET_BYTES_MIN <= size <= SECRET_BYTES_MAX:
        reason = f"must be whsec_ and base64 of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes"
        raise InvalidInputError(FieldProblem("secret", reason))
    return secret


def check_url(url: str) -> list[FieldProblem]:
    """Return the problem of a receiver's URL, if any. Each delivery checks its addresses."""
    try:
        parsed = httpx.URL(url)
        port = 1 if parsed.port is None else parsed.port
    except (httpx.InvalidURL, ValueError):
        return [FieldProblem("url", "is not a URL")]
    checks = (
        (parsed.scheme in {"http", "https"}, "must begin with http:// or https://"),
        (bool(parsed.host), "must name a host"),
        (not parsed.userinfo, "must hold no credentials"),
        (not parsed.fragment, "must have no fragment"),
        (0 < port <= PORT_MAX, "must have a port from 1 to 65535"),
        (url.isprintable() and " " not in url, "must have no spaces or control characters"),
    )
    return [FieldProblem("url", reason) for is_good, reason in checks if not is_good][:1]


def _columns(vault: Vault, of: NewEndpoint | Endpoint) -> dict[str, object]:
    """Return the columns that the owner sets.

    Raises: InvalidInputError with all problems at once.
    """
    problems = [
        *check_url(of.url),
        *_type_problems(of.filter_types or ()),
        *_header_problems(of.headers or {}),
    ]
    if problems:
        raise InvalidInputError(*problems)
    return {
        "url": of.url,
        "description": of.description,
        "filter_types": sorted(set(of.filter_types)) if of.filter_types else None,
        "headers": vault.seal_json(of.headers or {}),
        "metadata": orjson.dumps(dict(of.metadata or {})).decode(),
    }


def _type_problems(filter_types: Sequence[str]) -> Iterator[FieldProblem]:
    choice = ", ".join(PAYLOAD_TYPES)
    for place, name in enumerate(filter_types):
        if name not in PAYLOAD_TYPES:
            yield FieldProblem(f"filter_types[{place}]", f"is not one of {choice}")


def _header_problems(headers: Mapping[str, str]) -> Iterator[FieldProblem]:
    """Yield problems that name the header, never its value."""
    if len(headers) > ENTRIES_MAX:  # a change is merged with the headers that are stored
        yield FieldProblem("headers", f"must have at most {ENTRIES_MAX} entries")
        return
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            yield FieldProblem("headers", f"{name!r} is not a name")
        elif name.lower() in _RESERVED_HEADERS or name.lower().startswith(_RESERVED_PREFIXES):
            yield FieldProblem(f"headers.{name}", "is set by the sender")
        if not _HEADER_VALUE.fullmatch(value):
            yield FieldProblem(f"headers.{name}", "must be printable ASCII")


def _endpoint(vault: Vault, *, headers: Mapping[str, str] | str, **columns: Any) -> Endpoint:
    return Endpoint(headers=vault.open_json(headers), **columns)


def _one(
    conn: Connection,
    statement: TextClause,
    business_id: BusinessId,
    endpoint_id: EndpointId,
    **values: object,
) -> Endpoint:
    """Return the endpoint that a statement returns.

    Raises: NotFoundError if the business has no such endpoint.
    """
    found = conn.execute(
        statement, {"business_id": business_id, "endpoint_id": endpoint_id, **values}
    )
    return get_one(partial(_endpoint, vault_of(conn)), found, _KIND, endpoint_id)
