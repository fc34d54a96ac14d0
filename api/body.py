"""Reads the body of a request up to a limit, and expands a compressed one.

The middleware expands a body before the route reads it, so routes see plain bodies only. The limit
holds for the compressed size and for the expanded size.
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

# The `wbits` of zlib for each format: gzip's header, zlib's header, no header.
_GZIP_BITS: Final = 16 + zlib.MAX_WBITS
_ZLIB_BITS: Final = zlib.MAX_WBITS
_RAW_BITS: Final = -zlib.MAX_WBITS
_CODINGS: Final = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
_TAKEN: Final = "gzip, deflate, identity"
# A gzip body may consist of several members. Each costs a copy, even an empty one.
_MEMBERS_MAX: Final = {"gzip": 100, "deflate": 1}
_METHOD_BITS: Final = 0x0F


async def read_body(request: Request, bytes_max: int) -> bytes:
    """Read a body. Its length need not be known in advance.

    Raises: HTTPException if it is longer than `bytes_max`; ClientDisconnect if the client hung up.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > bytes_max:
            raise too_large(bytes_max)
        parts.append(part)
    return b"".join(parts)


def coding_of(header: str) -> str | None:
    """Return the coding in a `Content-Encoding` header. Returns None if the body is plain.

    Raises: HTTPException if the coding is not supported, or there are several.
    """
    name = header.strip().lower()
    if name in {"", "identity"}:
        return None
    if name not in _CODINGS:
        text = f"a body may be compressed by one of {_TAKEN}, not by {name[:60]!a}"
        raise HTTPException(415, text, headers={"Accept-Encoding": _TAKEN})
    return _CODINGS[name]


async def unpack(scope: Scope, receive: Receive, coding: str, bytes_max: int) -> Receive:
    """Read and expand the body of a request. Return a `receive` that yields the plain body.

    Changes the headers in `scope` to those of the plain body.

    Raises: HTTPException if either size is above `bytes_max`; InvalidInputError if the body is not
        in this coding; ClientDisconnect if the client hung up.
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
    """Return the plain form of a body. Expands one byte more than `bytes_max` at most.

    Raises: HTTPException if it is longer than `bytes_max`; InvalidInputError if it is not in this
        coding, is damaged, or has bytes after its end.
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
    """Return one member in plain form, and the bytes after it.

    Expands up to `room` + 1 bytes: the extra byte shows that the member does not fit.
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
    """Return the `wbits`. Some clients send "deflate" without the zlib header that it requires."""
    if coding == "gzip":
        return _GZIP_BITS
    return _ZLIB_BITS if packed[0] & _METHOD_BITS == zlib.DEFLATED else _RAW_BITS


def _damaged(coding: str) -> InvalidInputError:
    return InvalidInputError(FieldProblem("body", f"is not whole {coding}, as its header says"))
