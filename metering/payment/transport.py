"""HTTP to a provider; each exchange has one deadline and one limit of bytes.

The vendors' clients are synchronous and limit the time of a single read: a slow answer, or a silent
name server, could hold a task for ever. So their requests use the HTTP code of our webhooks, which
has a deadline for the whole exchange.
"""

import asyncio
from typing import Final

import httpcore
import httpx

from metering.errors import RefusedAddressError, UnresolvedHostError
from metering.webhook.send import HttpSender, describe

# A charge is answered within a second or two. After this time it is looked up again.
TIMEOUT_MS: Final = 10_000
# A page of 100 payments is a few hundred KiB.
ANSWER_BYTES_MAX: Final = 4 << 20
# These replace the client's: a compressed answer could be larger than it looks, and a connection
# serves one exchange.
_HEADERS: Final = ((b"Accept-Encoding", b"identity"), (b"Connection", b"close"))
_REPLACED: Final = frozenset(name.lower() for name, _ in _HEADERS)


def bounded_client(*, allow_private: bool, timeout_ms: int = TIMEOUT_MS) -> httpx.Client:
    """Return a client for one provider. It ignores proxies of the environment.

    `allow_private`: the provider may be at a private address. Calls raise `httpx.TransportError`
    with a text of ours, which holds no secret.
    """
    return httpx.Client(
        transport=BoundedTransport(allow_private=allow_private, timeout_ms=timeout_ms),
        trust_env=False,
        follow_redirects=False,
    )


class BoundedTransport(httpx.BaseTransport):
    """Makes each request on its own connection; the deadline covers DNS to the last byte."""

    def __init__(self, *, allow_private: bool, timeout_ms: int) -> None:
        self._sender = HttpSender(timeout_s=timeout_ms / 1000, allow_private=allow_private)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request. It runs an event loop, so not for a thread that has one."""
        request.read()
        try:
            return asyncio.run(self._within_deadline(request))
        except (
            OSError,  # a TimeoutError too
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            httpcore.UnsupportedProtocol,
            RefusedAddressError,
            UnresolvedHostError,
        ) as error:
            raise httpx.TransportError(describe(error, self._sender.timeout_s)) from None

    async def _within_deadline(self, request: httpx.Request) -> httpx.Response:
        async with asyncio.timeout(self._sender.timeout_s):
            connection = self._sender.connection(request.url)
            try:
                return await _exchange(connection, request)
            finally:
                await connection.aclose()

    def close(self) -> None:
        """Release the resolver's threads."""
        self._sender.close()


async def _exchange(
    connection: httpcore.AsyncHTTPConnection, request: httpx.Request
) -> httpx.Response:
    url = httpcore.URL(
        scheme=request.url.raw_scheme,
        host=request.url.raw_host,
        port=request.url.port,
        target=request.url.raw_path,
    )
    kept = [header for header in request.headers.raw if header[0].lower() not in _REPLACED]
    async with connection.stream(
        request.method, url, headers=[*kept, *_HEADERS], content=request.content
    ) as response:
        body = await _read(response)
        return httpx.Response(
            response.status, headers=response.headers, stream=httpx.ByteStream(body)
        )


async def _read(response: httpcore.Response) -> bytes:
    headers = httpx.Headers(response.headers)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise httpcore.RemoteProtocolError
    parts, size = [], 0
    async for part in response.aiter_stream():
        parts.append(part)
        size += len(part)
        if size > ANSWER_BYTES_MAX:
            raise httpcore.RemoteProtocolError
    return b"".join(parts)
