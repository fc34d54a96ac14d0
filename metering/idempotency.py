"""Idempotency by key: the same key and content gets the first answer, other content a conflict."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson
from sqlalchemy import Connection, Row, TextClause

from metering.errors import IdempotencyConflictError
from metering.ids import BusinessId
from metering.statements import LOCK_KEY


def digest_of(content: Mapping[str, object] | bytes) -> bytes:
    """Return 16 bytes that stand for the content of a request, or for its JSON."""
    if not isinstance(content, bytes):
        content = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return blake2b(content, digest_size=16).digest()


def first_answer(
    conn: Connection,
    business_id: BusinessId,
    key: str | None,
    digest: bytes,
    *,
    lock: int,
    find: TextClause,
) -> Row[Any] | None:
    """Return the row that the first request with this key wrote. Returns None if this is the first.

    From here on other requests with the key wait. `lock` is one of `metering.locks`. `find` takes
    `business_id` and `idempotency_key`; its rows have a `request_digest`.

    Raises: IdempotencyConflictError if the first request had other content.
    """
    if key is None:
        return None
    values = {"business_id": business_id, "idempotency_key": key}
    conn.execute(LOCK_KEY, {"lock": lock, **values})
    row = conn.execute(find, values).one_or_none()
    if row is not None and bytes(row.request_digest) != digest:
        raise IdempotencyConflictError(key)
    return row
