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
    """Pass the response through, count it, and record by `rule` once when the server closes it.

    A server closes every response, a disconnected client's too. Nothing is buffered, but a
    `wsgi.file_wrapper` loses its short cut through the kernel.
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
            exchange.error = None  # its traceback holds frames that hold the exchange

        try:
            body = self._app(environ, _noting(start_response, exchange))
        except BaseException as error:
            exchange.error = error
            end()
            raise
        kind = _SizedBody if hasattr(body, "__len__") else _Body
        return kind(body, exchange, end)


def _noting(start_response: "StartResponse", exchange: Exchange) -> "StartResponse":
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
    """The response's body, counted chunk by chunk."""

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
        """Close the application's body, then record: once, however often the server closes."""
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
    """A body of known length: a server may derive Content-Length from a single chunk."""

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
