"""Webhook endpoints: where a business wants to be told, of what, and signed with which secret."""

import base64
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import httpx
import orjson
from sqlalchemy import Connection, Row

from metering.errors import FieldProblem, InvalidInputError, NotFoundError, TooManyEndpointsError
from metering.ids import BusinessId, EndpointId, new_id
from metering.vault import Vault, vault_of
from metering.webhook import statements
from metering.webhook.outbox import PAYLOAD_TYPES

ENDPOINTS_MAX: Final = 50
URL_CHARS_MAX: Final = 2048
PORT_MAX: Final = 65_535
DESCRIPTION_CHARS_MAX: Final = 1000
ENTRIES_MAX: Final = 50  # of headers, and of metadata
NAME_CHARS_MAX: Final = 100
VALUE_CHARS_MAX: Final = 1000
SECRET_BYTES: Final = 32
SECRET_BYTES_MIN: Final = 24
SECRET_BYTES_MAX: Final = 64
ROTATION_OVERLAP_S: Final = 86_400
ROTATION_OVERLAP_MAX_S: Final = 7 * 86_400

_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - says what follows, and is none
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_HEADER_VALUE: Final = re.compile(r"[!-~]([\t -~]*[!-~])?", re.ASCII)
# Set by us, or by HTTP itself: an endpoint's own would forge a signature or split a request.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint as stored, without its secret; `filter_types` None: all types."""

    endpoint_id: EndpointId
    business_id: BusinessId
    url: str
    description: str | None
    filter_types: tuple[str, ...] | None
    # Names and values can be credentials of the receiver.
    headers: Mapping[str, str] = field(repr=False)
    metadata: Mapping[str, str]
    disabled_at: datetime | None
    disabled_reason: str | None
    failures_in_row: int
    failing_since: datetime | None
    created_at: datetime
    updated_at: datetime


def create_endpoint(
    conn: Connection,
    business_id: BusinessId,
    url: str,
    *,
    description: str | None = None,
    filter_types: Sequence[str] | None = None,
    headers: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Endpoint:
    """Make an endpoint with a new secret (`endpoint_secret` tells it); it is told of what follows.

    `headers` go with every call. An empty `filter_types` means all types, as None does.

    Raises:
        InvalidInputError: something is not as the limits of this module have it.
        TooManyEndpointsError: there are `ENDPOINTS_MAX` already.

    """
    vault = vault_of(conn)
    values = _checked(url, description, filter_types, headers or {}, metadata or {})
    row = conn.execute(
        statements.INSERT_ENDPOINT,
        {
            **values,
            "headers": vault.seal_json(headers or {}),
            "endpoint_id": new_id("whk"),
            "business_id": business_id,
            "secret": vault.seal(new_secret()),
            "endpoints_max": ENDPOINTS_MAX,
        },
    ).one_or_none()
    if row is None:
        raise TooManyEndpointsError(ENDPOINTS_MAX)
    return _endpoint(vault, row)


def get_endpoint(conn: Connection, business_id: BusinessId, endpoint_id: EndpointId) -> Endpoint:
    """Return an endpoint of this business.

    Raises:
        NotFoundError: the business has no such endpoint.

    """
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    return _found(conn, conn.execute(statements.ENDPOINT, key).one_or_none(), endpoint_id)


def list_endpoints(
    conn: Connection, business_id: BusinessId, *, limit: int, after: EndpointId | None = None
) -> list[Endpoint]:
    """Return up to `limit` endpoints of this business that come after `after`, oldest first."""
    page = {"business_id": business_id, "after": after or "", "page": limit}
    vault = vault_of(conn)
    return [_endpoint(vault, row) for row in conn.execute(statements.ENDPOINTS, page)]


def update_endpoint(
    conn: Connection,
    business_id: BusinessId,
    endpoint_id: EndpointId,
    *,
    url: str,
    description: str | None,
    filter_types: Sequence[str] | None,
    headers: Mapping[str, str],
    metadata: Mapping[str, str],
) -> Endpoint:
    """Replace what an endpoint is made of; the next attempts go by it, also of older events.

    Raises:
        InvalidInputError: as in `create_endpoint`.
        NotFoundError: the business has no such endpoint.

    """
    values = _checked(url, description, filter_types, headers, metadata)
    values["headers"] = vault_of(conn).seal_json(headers)
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    row = conn.execute(statements.UPDATE_ENDPOINT, {**values, **key}).one_or_none()
    return _found(conn, row, endpoint_id)


def disable_endpoint(
    conn: Connection, business_id: BusinessId, endpoint_id: EndpointId, reason: str = "by its owner"
) -> Endpoint:
    """Stop sending to an endpoint. Pending deliveries wait; of what happens now it is not told.

    `dead_letter.replay` with a time sends what it has missed.

    Raises:
        NotFoundError: the business has no such endpoint.

    """
    values = {"business_id": business_id, "endpoint_id": endpoint_id, "reason": reason}
    return _found(
        conn, conn.execute(statements.DISABLE_ENDPOINT, values).one_or_none(), endpoint_id
    )


def enable_endpoint(conn: Connection, business_id: BusinessId, endpoint_id: EndpointId) -> Endpoint:
    """Send to an endpoint again, beginning with what waited; its failures are forgotten.

    Raises:
        NotFoundError: the business has no such endpoint.

    """
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    return _found(conn, conn.execute(statements.ENABLE_ENDPOINT, key).one_or_none(), endpoint_id)


def delete_endpoint(conn: Connection, business_id: BusinessId, endpoint_id: EndpointId) -> None:
    """Forget an endpoint, its deliveries and their attempts; the events stay.

    Raises:
        NotFoundError: the business has no such endpoint.

    """
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    if not conn.execute(statements.DELETE_ENDPOINT, key).rowcount:
        raise NotFoundError("webhook endpoint", endpoint_id)


def endpoint_secret(conn: Connection, business_id: BusinessId, endpoint_id: EndpointId) -> str:
    """Return the secret that signs: `whsec_` and base64.

    Raises:
        NotFoundError: the business has no such endpoint.

    """
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    secret = conn.execute(statements.ENDPOINT_SECRET, key).scalar_one_or_none()
    if secret is None:
        raise NotFoundError("webhook endpoint", endpoint_id)
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

    The one before signs too for `overlap_s` seconds, so that receivers can change over; 0: it is
    out at once, because it leaked.

    Raises:
        InvalidInputError: the secret is not `whsec_` and base64 of 24 to 64 bytes, or the overlap
            is not 0 to 7 days.
        NotFoundError: the business has no such endpoint.

    """
    if not 0 <= overlap_s <= ROTATION_OVERLAP_MAX_S:
        raise InvalidInputError(
            FieldProblem("overlap_s", f"must be from 0 to {ROTATION_OVERLAP_MAX_S}")
        )
    secret = new_secret() if secret is None else _checked_secret(secret)
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    values = {**key, "secret": vault_of(conn).seal(secret), "overlap_s": overlap_s}
    if not conn.execute(statements.ROTATE_SECRET, values).rowcount:
        raise NotFoundError("webhook endpoint", endpoint_id)
    return secret


def new_secret() -> str:
    """Return `whsec_` and base64 of random bytes."""
    return _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _checked_secret(secret: str) -> str:
    """Return the secret if it is one. The problem never quotes it."""
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
    """Return what is wrong with a receiver's URL. Its addresses are judged at each delivery."""
    if len(url) > URL_CHARS_MAX:
        return [FieldProblem("url", f"must have at most {URL_CHARS_MAX} characters")]
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
    return [FieldProblem("url", reason) for is_good, reason in checks if not is_good]


def _checked(
    url: str,
    description: str | None,
    filter_types: Sequence[str] | None,
    headers: Mapping[str, str],
    metadata: Mapping[str, str],
) -> dict[str, object]:
    """Return the columns, or raise with all problems at once."""
    problems = check_url(url)
    if len(description or "") > DESCRIPTION_CHARS_MAX or "\0" in (description or ""):
        problems.append(
            FieldProblem("description", f"must be at most {DESCRIPTION_CHARS_MAX} characters")
        )
    problems += _type_problems(filter_types or ())
    problems += _header_problems(headers)
    problems += _entry_problems("metadata", metadata)
    if problems:
        raise InvalidInputError(*problems)
    return {
        "url": url,
        "description": description,
        "filter_types": sorted(set(filter_types)) if filter_types else None,
        "metadata": orjson.dumps(dict(metadata)).decode(),
    }


def _type_problems(filter_types: Sequence[str]) -> list[FieldProblem]:
    choice = ", ".join(PAYLOAD_TYPES)
    return [
        FieldProblem(f"filter_types[{place}]", f"is not one of {choice}")
        for place, name in enumerate(filter_types)
        if name not in PAYLOAD_TYPES
    ]


def _header_problems(headers: Mapping[str, str]) -> list[FieldProblem]:
    """Problems name the header, never its value."""
    problems = _entry_problems("headers", headers)
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            problems.append(FieldProblem("headers", f"{name[:NAME_CHARS_MAX]!r} is not a name"))
        elif name.lower() in _RESERVED_HEADERS or name.lower().startswith(_RESERVED_PREFIXES):
            problems.append(FieldProblem(f"headers.{name}", "is set by the sender"))
        if not _HEADER_VALUE.fullmatch(value):
            problems.append(FieldProblem(f"headers.{name}", "must be printable ASCII"))
    return problems


def _entry_problems(name: str, entries: Mapping[str, str]) -> list[FieldProblem]:
    if len(entries) > ENTRIES_MAX:
        return [FieldProblem(name, f"must have at most {ENTRIES_MAX} entries")]
    long = any(
        len(key) > NAME_CHARS_MAX or len(value) > VALUE_CHARS_MAX for key, value in entries.items()
    )
    reason = f"names up to {NAME_CHARS_MAX}, values up to {VALUE_CHARS_MAX} characters"
    return [FieldProblem(name, reason)] if long else []


def _endpoint(vault: Vault, row: Row[Any]) -> Endpoint:
    columns = dict(row._mapping)  # noqa: SLF001 - the public name of a row's mapping
    columns["headers"] = vault.open_json(columns["headers"])
    if columns["filter_types"] is not None:
        columns["filter_types"] = tuple(columns["filter_types"])
    return Endpoint(**columns)


def _found(conn: Connection, row: Row[Any] | None, endpoint_id: EndpointId) -> Endpoint:
    if row is None:
        raise NotFoundError("webhook endpoint", endpoint_id)
    return _endpoint(vault_of(conn), row)
