"""API keys: create, list, revoke, authenticate.

A key is `gk_`, 12 characters by which it is found, `_` and 43 secret characters.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, NamedTuple, get_args

from sqlalchemy import Connection

from metering.access import statements
from metering.errors import FieldProblem, InvalidInputError, NotFoundError, UnauthorizedError
from metering.fields import NAME_CHARS_MAX
from metering.ids import BusinessId, KeyId, new_id

Permission = Literal["ingest", "read", "write"]
PERMISSIONS: Final[tuple[Permission, ...]] = get_args(Permission)

# How old the stored time of use may be: a busy key must not write a row per request.
USE_FRESH_S: Final = 60

_LOOKUP_CHARS: Final = 12
_SECRET_BYTES: Final = 32
# The form of a key in ASCII. A text that is too long or holds NUL never reaches the database.
_FORM: Final = re.compile(r"(gk_[a-z2-7]{12})_[A-Za-z0-9_-]{43}")
# Compared with if there is no such key, so that the time of the answer reveals nothing.
_NO_HASH: Final = bytes(hashlib.sha256().digest_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A new key. `key` is its whole text, which is not stored."""

    key_id: KeyId
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as listed; `prefix` is its text up to the secret."""

    key_id: KeyId
    business_id: BusinessId
    name: str
    prefix: str
    scopes: tuple[Permission, ...]
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


class Principal(NamedTuple):
    """The business of a key, and what the key may do."""

    key_id: KeyId
    business_id: BusinessId
    permissions: frozenset[Permission]


def create_key(
    conn: Connection, business_id: BusinessId, name: str, permissions: Collection[str]
) -> NewKey:
    """Create a key.

    Raises: InvalidInputError if the name is blank, too long or holds NUL, or the permissions are
        empty or not all in `PERMISSIONS`; NotFoundError if there is no such business.
    """
    name = name.strip()
    _check(name, permissions)
    prefix, key = _new_text()
    made = NewKey(key_id=KeyId(new_id("key")), key=key)
    values = {
        "key_id": made.key_id,
        "business_id": business_id,
        "name": name,
        "prefix": prefix,
        "secret_hash": _hash(key),
        "scopes": [allowed for allowed in PERMISSIONS if allowed in permissions],
    }
    if not conn.execute(statements.INSERT_KEY, values).rowcount:
        raise NotFoundError("business", business_id)
    return made


def _check(name: str, permissions: Collection[str]) -> None:
    """Raise with all problems at once."""
    problems = []
    if not 0 < len(name) <= NAME_CHARS_MAX or "\0" in name:
        reason = f"must have 1 to {NAME_CHARS_MAX} characters, none of them NUL"
        problems.append(FieldProblem("name", reason))
    unknown = sorted(set(permissions) - set(PERMISSIONS))
    if not permissions or unknown:
        found = f", not {unknown[0]!r}" if unknown else ""
        reason = f"must be one or more of {', '.join(PERMISSIONS)}{found}"
        problems.append(FieldProblem("scopes", reason))
    if problems:
        raise InvalidInputError(*problems)


def _new_text() -> tuple[str, str]:
    """Return the prefix of a new key and its whole text."""
    lookup = base64.b32encode(secrets.token_bytes(_LOOKUP_CHARS)).decode().lower()
    prefix = f"gk_{lookup[:_LOOKUP_CHARS]}"
    return prefix, f"{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def _hash(key: str) -> bytes:
    # A slow hash is for passwords that can be guessed; 256 random bits cannot.
    return hashlib.sha256(key.encode()).digest()


def list_keys(conn: Connection, business_id: BusinessId) -> list[ApiKey]:
    """Return the keys of a business, newest first, revoked ones too."""
    rows = conn.execute(statements.KEYS, {"business_id": business_id}).mappings()
    return [ApiKey(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]


def revoke_key(conn: Connection, business_id: BusinessId, key_id: KeyId) -> None:
    """Revoke a key; a second time changes nothing.

    Raises: NotFoundError.
    """
    values = {"business_id": business_id, "key_id": key_id}
    if not conn.execute(statements.REVOKE_KEY, values).rowcount:
        raise NotFoundError("API key", key_id)


def prefix_of(key: str) -> str:
    """Return the prefix by which a key is found, without the database.

    Raises: UnauthorizedError if the text has not the form of a key.
    """
    form = _FORM.fullmatch(key)
    if form is None:
        raise UnauthorizedError
    return form[1]


def authenticate(conn: Connection, key: str) -> Principal:
    """Return the principal of a key.

    Raises: UnauthorizedError if the text is not a key, or the key is unknown or revoked.
    """
    row = conn.execute(statements.KEY_OF_PREFIX, {"prefix": prefix_of(key)}).one_or_none()
    is_same = hmac.compare_digest(_hash(key), _NO_HASH if row is None else row.secret_hash)
    if row is None or not is_same:
        raise UnauthorizedError
    return Principal(row.key_id, row.business_id, frozenset(row.scopes))


def note_use(conn: Connection, principal: Principal) -> None:
    """Store that the key was used, unless the stored time is less than `USE_FRESH_S` old."""
    conn.execute(
        statements.NOTE_USE,
        {
            "business_id": principal.business_id,
            "key_id": principal.key_id,
            "fresh_s": USE_FRESH_S,
        },
    )
