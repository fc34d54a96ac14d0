"""The middlewares meter each request once, however it ends, and do not change it."""

import asyncio
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest

from metering.accept import (
    Meter,
    MeterMiddleware,
    MeterWsgiMiddleware,
    RequestFacts,
    Usage,
    usage,
)
from metering.accept.client import exchange as request_module
from metering.accept.client.asgi import AsgiApp, Message, Receive, Scope, Send
from metering.accept.client.flusher import Link, LogThrottle
from metering.errors import ConfigurationError


class FakeMeter:
    """Keeps the arguments of `record`."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, str, object]] = []

    def record(
        self, event_name: str, customer_id: str, *, metadata: object = None, **_: object
    ) -> str:
        self.recorded.append((event_name, customer_id, metadata))
        return "evt"


class Rule:
    """Keeps the facts of each call; returns one usage with the properties of the handler."""

    def __init__(self) -> None:
        self.facts: list[RequestFacts] = []

    def __call__(self, facts: RequestFacts) -> Usage:
        self.facts.append(facts)
        return Usage(event_name="call", customer_id="cus_1", metadata=dict(facts.added))

    @property
    def only(self) -> RequestFacts:
        (facts,) = self.facts
        return facts


@pytest.fixture
def meter() -> FakeMeter:
    return FakeMeter()


@pytest.fixture
def rule() -> Rule:
    return Rule()


@pytest.fixture(autouse=True)
def _fresh_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "_unmetered_log", LogThrottle())
    monkeypatch.setattr(request_module, "_failure_log", LogThrottle())


async def respond(send: Send, *chunks: bytes, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    for number, chunk in enumerate(chunks, 1):
        more = number < len(chunks)
        await send({"type": "http.response.body", "body": chunk, "more_body": more})


async def generate(_scope: Scope, _receive: Receive, send: Send) -> None:
    """A handler that adds usage while it streams, also from a child task."""
    usage.note("model", "large")
    usage.add("tokens", 2)

    async def child() -> None:
        usage.add("tokens", 3)

    await asyncio.create_task(child())
    await respond(send, b"hello ", b"world")


def get(app: Any, path: str = "/v1/generate?x=1") -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.get(path, headers={"X-Customer": "cus_1"})

    return asyncio.run(run())


def test_a_request_is_metered_once_with_its_facts(meter: FakeMeter, rule: Rule) -> None:
    response = get(MeterMiddleware(generate, meter, rule))

    facts = rule.only
    assert response.text == "hello world"
    assert (facts.method, facts.path, facts.status) == ("GET", "/v1/generate", 200)
    assert facts.headers["x-customer"] == "cus_1"
    assert (facts.response_bytes, facts.is_complete, facts.error) == (11, True, None)
    assert 0 < facts.duration_s < 5
    assert facts.native["query_string"] == b"x=1"
    assert meter.recorded == [("call", "cus_1", {"model": "large", "tokens": 5})]


def test_concurrent_requests_do_not_mix_their_quantities(meter: FakeMeter, rule: Rule) -> None:
    async def handler(scope: Scope, _receive: Receive, send: Send) -> None:
        for _ in range(10):
            usage.add(scope["path"], 1)
            await asyncio.sleep(0)
        await respond(send, b"")

    async def run() -> None:
        transport = httpx.ASGITransport(app=MeterMiddleware(handler, meter, rule))
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            await asyncio.gather(*(client.get(f"/{n}") for n in range(20)))

    asyncio.run(run())

    returned = [metadata for _, _, metadata in meter.recorded]
    assert sorted(returned, key=str) == sorted([{f"/{n}": 10} for n in range(20)], key=str)


def test_a_handler_that_raises_is_metered_and_its_error_propagates(
    meter: FakeMeter, rule: Rule
) -> None:
    async def broken(_scope: Scope, _receive: Receive, _send: Send) -> None:
        usage.add("tokens", 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        get(MeterMiddleware(broken, meter, rule))

    assert isinstance(rule.only.error, ZeroDivisionError)
    assert (rule.only.status, rule.only.is_complete) == (None, False)
    assert meter.recorded == [("call", "cus_1", {"tokens": 1})]


def test_a_cancelled_handler_is_metered(meter: FakeMeter, rule: Rule) -> None:
    """The server cancels the handler when the client disconnects; its usage still counts."""
    started = asyncio.Event()

    async def endless(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"token", "more_body": True})
        usage.add("tokens", 1)
        started.set()
        await asyncio.Event().wait()

    async def run() -> None:
        app = MeterMiddleware(endless, meter, rule)
        task = asyncio.create_task(served(app))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())

    facts = rule.only
    assert (facts.status, facts.response_bytes, facts.is_complete) == (200, 5, False)
    assert isinstance(facts.error, asyncio.CancelledError)
    assert meter.recorded == [("call", "cus_1", {"tokens": 1})]


async def served(app: AsgiApp, *received: Message, kind: str = "http") -> list[Message]:
    """Serve one connection by hand; `receive` gives `received`, then waits for ever."""
    inbox = iter(received)
    sent: list[Message] = []

    async def receive() -> Message:
        for message in inbox:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": kind, "method": "GET", "path": "/", "headers": []}, receive, send)
    return sent


def test_a_response_is_incomplete_after_an_early_disconnect(meter: FakeMeter, rule: Rule) -> None:
    async def polite(_scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"
        await respond(send, b"x")

    asyncio.run(served(MeterMiddleware(polite, meter, rule), {"type": "http.disconnect"}))

    assert (rule.only.is_complete, rule.only.status) == (False, 200)


def test_a_response_is_complete_before_a_late_disconnect(meter: FakeMeter, rule: Rule) -> None:
    async def polite(_scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x")
        await receive()

    asyncio.run(served(MeterMiddleware(polite, meter, rule), {"type": "http.disconnect"}))

    assert rule.only.is_complete


def test_chunks_pass_one_by_one(meter: FakeMeter, rule: Rule) -> None:
    """Nothing is buffered: the server has the first chunk before the handler makes the second."""
    passed: list[bytes] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for chunk in (b"a", b"b", b"c"):
            await send({"type": "http.response.body", "body": chunk, "more_body": chunk != b"c"})
            assert passed[-1] == chunk

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        passed.append(message.get("body", b""))

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(MeterMiddleware(app, meter, rule)(scope, receive, send))

    assert rule.only.response_bytes == 3


def test_a_failing_rule_is_logged_and_does_not_change_the_response(
    meter: FakeMeter, caplog: pytest.LogCaptureFixture
) -> None:
    before = request_module.RULE_ERRORS._value.get()

    def broken(_facts: RequestFacts) -> Usage:
        raise KeyError("customer")

    for _ in range(3):
        assert get(MeterMiddleware(generate, meter, broken)).status_code == 200
    assert call_wsgi(MeterWsgiMiddleware(stream, meter, broken))[1] == [b"hello ", b"world"]

    assert meter.recorded == []
    assert request_module.RULE_ERRORS._value.get() == before + 4
    assert caplog.text.count("a request was not metered") == 1


@pytest.mark.parametrize(
    ("returned", "events"),
    [
        (None, 0),
        ((), 0),
        (Usage(event_name="call", customer_id="cus_1"), 1),
        ([Usage(event_name=name, customer_id="cus_1") for name in ("in", "out")], 2),
    ],
)
def test_a_rule_returns_no_one_or_several_events(
    meter: FakeMeter, returned: Usage | Sequence[Usage] | None, events: int
) -> None:
    get(MeterMiddleware(generate, meter, lambda _facts: returned))

    assert len(meter.recorded) == events


def test_other_protocols_pass_unmetered(meter: FakeMeter, rule: Rule) -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": f"{scope['type']}.accept"})

    for kind in ("websocket", "lifespan"):
        sent = asyncio.run(served(MeterMiddleware(app, meter, rule), kind=kind))

        assert sent == [{"type": f"{kind}.accept"}]
    assert rule.facts == []


def test_the_asgi_middleware_refuses_a_blocking_meter(rule: Rule) -> None:
    def link() -> Link:
        raise AssertionError

    with (
        Meter("", "bus_1", link=link, on_full="block", handle_sigterm=False) as blocking,
        pytest.raises(ConfigurationError, match="event loop"),
    ):
        MeterMiddleware(generate, blocking, rule)


def test_usage_outside_a_request_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        usage.add("tokens", 1)
        usage.note("model", "large")

    assert caplog.text.count("no metering middleware is around") == 1


StartResponse = Callable[..., Callable[[bytes], object]]


def call_wsgi(app: Any, *, read_chunks: int | None = None) -> tuple[list[str], list[bytes]]:
    """Serve one WSGI request as a server does; `read_chunks`: the client leaves after so many."""
    environ: dict[str, Any] = {"HTTP_X_CUSTOMER": "cus_1", "QUERY_STRING": ""}
    environ |= {"SCRIPT_NAME": "/api", "PATH_INFO": "/v1"}
    setup_testing_defaults(environ)
    environ["wsgi.input"], environ["wsgi.errors"] = io.BytesIO(), io.StringIO()
    statuses: list[str] = []

    def start_response(
        status: str, _headers: list[tuple[str, str]], _exc_info: object = None
    ) -> Callable[[bytes], object]:
        statuses.append(status)
        return lambda _data: None

    body = app(environ, start_response)
    chunks: list[bytes] = []
    try:
        for chunk in body:
            chunks.append(chunk)
            if len(chunks) == read_chunks:
                break
    finally:
        if hasattr(body, "close"):
            body.close()
    return statuses, chunks


HEADERS = [("Content-Type", "text/plain")]


def stream(_environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
    """A WSGI application that works while it is iterated."""
    start_response("201 Created", HEADERS)
    for chunk in (b"hello ", b"world"):
        usage.add("tokens", 1)
        yield chunk


def test_a_wsgi_request_is_metered_when_the_server_closes_it(meter: FakeMeter, rule: Rule) -> None:
    statuses, chunks = call_wsgi(MeterWsgiMiddleware(stream, meter, rule))

    facts = rule.only
    assert (statuses, chunks) == (["201 Created"], [b"hello ", b"world"])
    assert (facts.method, facts.path, facts.status) == ("GET", "/api/v1", 201)
    assert facts.headers["x-customer"] == "cus_1"
    assert (facts.response_bytes, facts.is_complete, facts.error) == (11, True, None)
    assert meter.recorded == [("call", "cus_1", {"tokens": 2})]


def test_a_wsgi_request_with_a_disconnect_is_metered(meter: FakeMeter, rule: Rule) -> None:
    call_wsgi(MeterWsgiMiddleware(stream, meter, rule), read_chunks=1)

    assert (rule.only.is_complete, rule.only.response_bytes) == (False, 6)
    assert meter.recorded == [("call", "cus_1", {"tokens": 1})]


def test_a_wsgi_application_can_raise_before_or_during_the_response(
    meter: FakeMeter, rule: Rule
) -> None:
    def at_once(_environ: dict[str, Any], _start: StartResponse) -> list[bytes]:
        raise ZeroDivisionError

    def later(_environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", HEADERS)
        yield b"x"
        raise ZeroDivisionError

    for app in (at_once, later):
        with pytest.raises(ZeroDivisionError):
            call_wsgi(MeterWsgiMiddleware(app, meter, rule))

    assert [facts.status for facts in rule.facts] == [None, 200]
    assert all(isinstance(facts.error, ZeroDivisionError) for facts in rule.facts)


def test_a_wsgi_body_of_known_length_keeps_it_and_closes_once(meter: FakeMeter, rule: Rule) -> None:
    def fixed(_environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", HEADERS)(b"written")
        return [b"ok"]

    body = MeterWsgiMiddleware(fixed, meter, rule)(
        {"REQUEST_METHOD": "GET"},
        lambda *_: lambda _data: None,
    )

    assert len(body) == 1  # type: ignore[arg-type]
    assert list(body) == [b"ok"]
    body.close()  # type: ignore[attr-defined]
    body.close()  # type: ignore[attr-defined]
    assert rule.only.response_bytes == 9


def test_the_wsgi_middleware_obeys_the_standard(meter: FakeMeter, rule: Rule) -> None:
    """`wsgiref.validate` watches both of its sides."""
    inner = validator(stream)

    assert call_wsgi(validator(MeterWsgiMiddleware(inner, meter, rule)))[0] == ["201 Created"]
