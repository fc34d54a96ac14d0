"""The body of a request: read up to a limit, and expanded where it came compressed.

A compressed body is read and expanded before anything looks at it, so that every route takes it
and no route knows of it. The limit holds for the size before and the size after.
"""

import zlib
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from api.errors import too_large
from metering.errors import FieldProblem, InvalidInputError

# What `zlib` calls each form: gzip's header, zlib's, none.
_GZIP_BITS: Final = 16 + zlib.MAX_WBITS
_ZLIB_BITS: Final = zlib.MAX_WBITS
_RAW_BITS: Final = -zlib.MAX_WBITS
_CODINGS: Final = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
_TAKEN: Final = "gzip, deflate, identity"
# A gzip body may be several, one after another; each costs a copy even if it holds nothing.
_MEMBERS_MAX: Final = {"gzip": 100, "deflate": 1}
_METHOD_BITS: Final = 0x0F


async def read_body(request: Request, bytes_max: int) -> bytes:
    """Read the body, whose length may not have been said in advance.

    Raises:
        HTTPException: it is longer than `bytes_max`.
        ClientDisconnect: the client hung up.

    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > bytes_max:
            raise too_large(bytes_max)
        parts.append(part)
    return b"".join(parts)


def coding_of(said: str) -> str | None:
    """Return the coding that a `Content-Encoding` header names; None if it names none.

    Raises:
        HTTPException: it is one that is not taken, or there are several.

    """
    name = said.strip().lower()
    if name in {"", "identity"}:
        return None
    if name not in _CODINGS:
        text = f"a body may be compressed by one of {_TAKEN}, not by {name[:60]!a}"
        raise HTTPException(415, text, headers={"Accept-Encoding": _TAKEN})
    return _CODINGS[name]


async def unpack(scope: Scope, receive: Receive, coding: str, bytes_max: int) -> Receive:
    """Read and expand the body of a request; return what gives it plain, as `receive` would.

    The headers in `scope` then say nothing of the coding and of the length before.

    Raises:
        HTTPException: it is longer than `bytes_max`, before or after.
        InvalidInputError: it is not what its header says.
        ClientDisconnect: the client hung up.

    """
    packed = await read_body(Request(scope, receive), bytes_max)
    plain = await run_in_threadpool(expand, packed, coding, bytes_max)
    headers = MutableHeaders(scope=scope)
    del headers["content-encoding"]
    headers["content-length"] = str(len(plain))
    waiting: list[Message] = [{"type": "http.request", "body": plain, "more_body": False}]

    async def receive_plain() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_plain


def expand(packed: bytes, coding: str, bytes_max: int) -> bytes:
    """Return the plain form of a body, of `bytes_max` bytes at most; no byte more is expanded.

    Raises:
        HTTPException: it would be longer.
        InvalidInputError: it is not in this coding, is damaged, or goes on after its end.

    """
    plain: list[bytes] = []
    room, rest = bytes_max, packed
    for _ in range(_MEMBERS_MAX[coding]):
        if not rest:
            return b"".join(plain)
        piece, rest = _expand_one(rest, coding, room)
        room -= len(piece)
        if room < 0:
            raise too_large(bytes_max)
        plain.append(piece)
    if rest:
        raise _damaged(coding)
    return b"".join(plain)


def _expand_one(packed: bytes, coding: str, room: int) -> tuple[bytes, bytes]:
    """Return one whole member in plain form, and the bytes after it.

    One byte more than `room` is expanded, which tells that there is not enough room.
    """
    unpacker = zlib.decompressobj(_bits(coding, packed))
    try:
        piece = unpacker.decompress(packed, room + 1)
    except zlib.error:
        raise _damaged(coding) from None
    if not unpacker.eof and len(piece) <= room:
        raise _damaged(coding)
    return piece, unpacker.unused_data


def _bits(coding: str, packed: bytes) -> int:
    """Return how to read it: "deflate" is with zlib's header, and some send it without."""
    if coding == "gzip":
        return _GZIP_BITS
    return _ZLIB_BITS if packed[0] & _METHOD_BITS == zlib.DEFLATED else _RAW_BITS


def _damaged(coding: str) -> InvalidInputError:
    return InvalidInputError(FieldProblem("body", f"is not whole {coding}, as its header says"))
