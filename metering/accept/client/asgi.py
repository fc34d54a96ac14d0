"""`MeterMiddleware`: meter the HTTP requests of an ASGI application."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from metering.accept.client.exchange import (
    Exchange,
    Recorder,
    RequestFacts,
    Rule,
    check_never_blocks,
    close_exchange,
    record_by_rule,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class MeterMiddleware:
    """Pass messages through unbuffered, and record by `rule` once at the end of each request.

    A request ends when the application returns, raises or is cancelled. Its response may be
    complete, cut off by the client, or never started; the rule sees which. WebSocket and lifespan
    are not metered.
    """

    def __init__(self, app: AsgiApp, meter: Recorder, rule: Rule) -> None:
        check_never_blocks(meter)
        self._app = app
        self._meter = meter
        self._rule = rule

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange()
        token = exchange.open()
        try:
            await self._app(
                scope, _with_disconnects(receive, exchange), _with_counts(send, exchange)
            )
        except BaseException as error:
            # Includes CancelledError: the usage of a cancelled handler counts.
            exchange.error = error
            raise
        finally:
            close_exchange(token)
            record_by_rule(self._meter, self._rule, lambda: _facts(exchange, scope))
            exchange.error = None  # breaks a cycle: its traceback refers to this frame


def _with_counts(send: Send, exchange: Exchange) -> Send:
    async def counted(message: Message) -> None:
        await send(message)
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
        elif message["type"] == "http.response.body":
            exchange.response_bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                exchange.is_complete = not exchange.is_cut_off

    return counted


def _with_disconnects(receive: Receive, exchange: Exchange) -> Receive:
    async def watched() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect" and not exchange.is_complete:
            exchange.is_cut_off = True
        return message

    return watched


def _facts(exchange: Exchange, scope: Scope) -> RequestFacts:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    return exchange.facts(scope["method"], scope["path"], headers, scope)
