"""Many HTTP calls at once, each with one deadline and one limit of bytes.

The deadline covers the whole call, because a receiver that sends a byte a second never exceeds a
limit per read. An event loop needs a timer for that, where a thread would block in a read. The loop
runs only inside `Flight.wait`; between two waits the caller uses the database.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Final, Generic, Self, TypeAlias, TypeVar

import httpcore
import httpx

from metering.clock import utc_now
from metering.errors import RefusedAddressError, UnreadableSecretError, UnresolvedHostError
from metering.webhook.guard import GuardedBackend, Reach, Resolve, system_resolver
from metering.webhook.retry import parse_retry_after

Ticket = TypeVar("Ticket")

RESOLVER_THREADS: Final = 16
# The body of an answer is not used. A little of it is read, so that a usual receiver can finish.
# The connection of one that sends more, or slowly, is closed.
BODY_READ_MAX_BYTES: Final = 16 << 10
BODY_READ_MAX_S: Final = 1.0
# How long to wait after an answer for others, to record them together.
GATHER_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Call:
    """A POST to a URL that `endpoints.check_url` accepts. Headers and body can hold secrets."""

    url: str
    headers: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended. If it is no success, `error` says why in words that a tenant may read."""

    attempted_at: datetime
    duration_ms: int
    status_code: int | None = None
    error: str | None = None
    retry_after_s: float | None = None

    @property
    def is_success(self) -> bool:
        """Tell whether the receiver took the webhook: it answered 2xx."""
        return self.status_code is not None and httpx.codes.is_success(self.status_code)


# Makes the call of an attempt that begins at the given moment.
Prepare: TypeAlias = Callable[[datetime], Call]


@cache
def _certificates() -> ssl.SSLContext:
    """Neither certificates nor proxies come from the environment. To read them takes 20 ms."""
    return httpx.create_ssl_context(trust_env=False)


class HttpSender:
    """Sends calls. A process has one: it keeps the TLS context and the threads of the resolver."""

    def __init__(
        self,
        *,
        timeout_s: float,
        allow_private: bool = False,
        allow_loopback: bool = False,
        resolve: Resolve | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolve")
        self._backend = GuardedBackend(
            resolve or system_resolver(self._threads),
            reach=Reach(loopback=allow_loopback, private=allow_private),
        )
        self._tls = _certificates()

    def connection(self, url: httpx.URL) -> httpcore.AsyncHTTPConnection:
        """Return a connection for one call; it is not open yet.

        There is no pool: calls of different tenants share nothing, and none fails because an idle
        connection was closed. `httpx.Client` would add cookies, redirects and proxies.
        """
        port = url.port or (443 if url.scheme == "https" else 80)
        return httpcore.AsyncHTTPConnection(
            httpcore.Origin(url.raw_scheme, url.raw_host, port),
            ssl_context=self._tls,
            network_backend=self._backend,
        )

    def close(self) -> None:
        """Stop the threads of the resolver, without waiting for a name server."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Flight(Generic[Ticket]):
    """Calls in flight, each with a ticket of the caller.

    A context manager; its end cancels the calls in flight.
    """

    def __init__(self, sender: HttpSender) -> None:
        self._sender = sender
        self._runner = asyncio.Runner()
        self._tickets: dict[asyncio.Task[Answer], Ticket] = {}
        self._started: dict[asyncio.Task[Answer], float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        with self._runner as runner:
            runner.run(self._drop())

    def __len__(self) -> int:
        return len(self._tickets)

    def tickets(self) -> Iterable[Ticket]:
        """Return the tickets of the calls in flight."""
        return self._tickets.values()

    def count_younger(self, age_s: float) -> int:
        """Return how many calls in flight began within the last `age_s` seconds."""
        since = time.monotonic() - age_s
        return sum(started > since for started in self._started.values())

    def start(self, ticket: Ticket, prepare: Prepare) -> None:
        """Add a call. It is prepared when it begins, and runs only during `wait`."""
        call = self._runner.get_loop().create_task(_exchange(self._sender, prepare))
        self._tickets[call], self._started[call] = ticket, time.monotonic()

    def wait(self, at_most_s: float) -> list[tuple[Ticket, Answer]]:
        """Return the calls that have ended, as soon as one has, or none after `at_most_s`."""
        if not self._tickets:
            return []
        self._runner.run(self._some_ended(at_most_s))
        ended = [call for call in self._tickets if call.done()]
        for call in ended:
            del self._started[call]
        return [(self._tickets.pop(call), call.result()) for call in ended]

    async def _some_ended(self, at_most_s: float) -> None:
        _, rest = await asyncio.wait(
            self._tickets, timeout=at_most_s, return_when=asyncio.FIRST_COMPLETED
        )
        if rest:
            await asyncio.wait(rest, timeout=GATHER_S)

    async def _drop(self) -> None:
        """Cancel all calls in flight."""
        for call in self._tickets:
            call.cancel()
        await asyncio.gather(*self._tickets, return_exceptions=True)


async def _exchange(sender: HttpSender, prepare: Prepare) -> Answer:
    """Make one call. Every error is an answer; only cancellation is raised."""
    attempted_at, started = utc_now(), time.perf_counter()
    status_code, retry_after, error = None, None, None
    try:
        async with (
            asyncio.timeout(sender.timeout_s),
            _posted(sender, prepare(attempted_at)) as response,
        ):
            status_code = response.status
            retry_after = _header(response, b"retry-after")
            await _skim(response)
    except Exception as cause:  # noqa: BLE001 - one bad receiver must not end the others' calls
        error = describe(cause, sender.timeout_s)
    return Answer(
        attempted_at=attempted_at,
        duration_ms=round((time.perf_counter() - started) * 1000),
        status_code=status_code,
        # With a status the receiver has answered, however the connection ended.
        error=error if status_code is None else _failure_of(status_code),
        retry_after_s=parse_retry_after(retry_after, utc_now()) if retry_after else None,
    )


def _failure_of(status_code: int) -> str | None:
    """Return why a status is no success. Returns None for 2xx. It quotes nothing of the body."""
    if httpx.codes.is_success(status_code):
        return None
    remark = ": redirects are not followed" if httpx.codes.is_redirect(status_code) else ""
    return f"answered {status_code}{remark}"


@asynccontextmanager
async def _posted(sender: HttpSender, call: Call) -> AsyncIterator[httpcore.Response]:
    """Post a call. The URL is parsed as in `endpoints.check_url`, so both see the same host."""
    url = httpx.URL(call.url)
    target = httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )
    headers = [("host", url.netloc.decode("ascii")), ("connection", "close"), *call.headers]
    connection = sender.connection(url)
    try:
        async with connection.stream(
            "POST", target, headers=headers, content=call.body
        ) as response:
            yield response
    finally:
        await connection.aclose()


async def _skim(response: httpcore.Response) -> None:
    """Read a small body to its end, or the beginning of a large or slow one."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(BODY_READ_MAX_S):
            async for part in response.aiter_stream():
                size += len(part)
                if size > BODY_READ_MAX_BYTES:
                    return


def _header(response: httpcore.Response, name: bytes) -> str | None:
    values = (value for key, value in response.headers if key.lower() == name)
    found = next(values, None)
    return None if found is None else found.decode("latin-1")


def describe(cause: Exception, timeout_s: float) -> str:
    """Return why there was no answer, in words of ours: foreign ones can quote headers."""
    if isinstance(cause, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(cause, UnresolvedHostError | RefusedAddressError | UnreadableSecretError):
        return cause.message
    link: BaseException | None = cause
    while link is not None:
        if isinstance(link, ssl.SSLCertVerificationError):
            return f"the certificate was not accepted: {link.verify_message}"
        link = link.__cause__ or link.__context__
    return _SENTENCES.get(type(cause), f"the call failed ({type(cause).__name__})")


_SENTENCES: Final[dict[type[Exception], str]] = {
    httpcore.ConnectError: "the connection was refused or failed",
    httpcore.ConnectTimeout: "the connection took too long",
    httpcore.ReadError: "the connection was lost before the answer",
    httpcore.WriteError: "the connection was lost while sending",
    httpcore.RemoteProtocolError: "the answer was not HTTP",
}
