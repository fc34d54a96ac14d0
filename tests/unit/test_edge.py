import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from api.middleware import RequestMiddleware


def test_a_client_that_disconnects_gets_no_answer_and_is_not_logged_as_an_error() -> None:
    sent: list[Message] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ClientDisconnect

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/livez", "query_string": b"", "headers": []}
    with capture_logs() as logged:
        asyncio.run(RequestMiddleware(app, body_bytes_max=1)(scope, receive, send))

    assert sent == []
    assert [line["log_level"] for line in logged] == ["info"]
