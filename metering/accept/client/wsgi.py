"""`MeterWsgiMiddleware`: meter the requests of a WSGI application."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from metering.accept.client.exchange import (
    Exchange,
    Recorder,
    RequestFacts,
    Rule,
    close_exchange,
    record_by_rule,
)

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_UNPREFIXED: Final = ("CONTENT_TYPE", "CONTENT_LENGTH")


class MeterWsgiMiddleware:
    """Pass the response through unbuffered, and record by `rule` once when the server closes it.

    A server closes every response, even after a disconnect. A `wsgi.file_wrapper` is no longer
    sent by the kernel.
    """

    def __init__(self, app: "WSGIApplication", meter: Recorder, rule: Rule) -> None:
        self._app = app
        self._meter = meter
        self._rule = rule

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Serve one request."""
        exchange = Exchange()
        token = exchange.open()

        def end() -> None:
            close_exchange(token)
            record_by_rule(self._meter, self._rule, lambda: _facts(exchange, environ))
            exchange.error = None  # breaks a cycle: its traceback refers to the exchange

        try:
            body = self._app(environ, _with_status(start_response, exchange))
        except BaseException as error:
            exchange.error = error
            end()
            raise
        kind = _SizedBody if hasattr(body, "__len__") else _Body
        return kind(body, exchange, end)


def _with_status(start_response: "StartResponse", exchange: Exchange) -> "StartResponse":
    def noting(
        status: str,
        headers: list[tuple[str, str]],
        exc_info: "OptExcInfo | None" = None,
        /,
    ) -> Callable[[bytes], object]:
        write = start_response(status, headers, exc_info)
        exchange.status = int(status.split(" ", 1)[0])

        def counted(data: bytes) -> object:
            exchange.response_bytes += len(data)
            return write(data)

        return counted

    return noting


class _Body:
    """The body of the response, counted chunk by chunk."""

    def __init__(self, body: Iterable[bytes], exchange: Exchange, end: Callable[[], None]) -> None:
        self._body = body
        self._chunks = iter(body)
        self._exchange = exchange
        self._end: Callable[[], None] | None = end

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._exchange.is_complete = True
            raise
        except BaseException as error:
            self._exchange.error = error
            raise
        self._exchange.response_bytes += len(chunk)
        return chunk

    def close(self) -> None:
        """Close the body of the application; record once, however often the server closes."""
        end, self._end = self._end, None
        try:
            if callable(close := getattr(self._body, "close", None)):
                close()
        except BaseException as error:
            self._exchange.error = error
            raise
        finally:
            if end is not None:
                end()


class _SizedBody(_Body):
    """A body with a length: a server may derive Content-Length from a single chunk."""

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]


def _facts(exchange: Exchange, environ: "WSGIEnvironment") -> RequestFacts:
    headers = {
        key.removeprefix("HTTP_").replace("_", "-").lower(): str(value)
        for key, value in environ.items()
        if key.startswith("HTTP_") or key in _UNPREFIXED
    }
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return exchange.facts(environ["REQUEST_METHOD"], path, headers, environ)
