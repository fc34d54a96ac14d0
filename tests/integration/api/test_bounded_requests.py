"""Requests have limits of size and time that hold before authentication."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from api import protocol
from api.protocol import HEAD_BYTES_MAX
from support.edge import Api

BEGUN = b"GET /livez HTTP/1.1\r\nHost: gullak\r\n"
POST = b"POST /customers HTTP/1.1\r\nHost: gullak\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
MIB = 1 << 20


@pytest.fixture
def connection(module_api_url: str) -> Iterator[socket.socket]:
    address = urlsplit(module_api_url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as opened:
        yield opened


def answer(connection: socket.socket) -> bytes:
    """The status line; empty if the connection was closed without one."""
    return connection.recv(4096).partition(b"\r\n")[0]


def test_a_request_head_of_the_largest_size_is_accepted(connection: socket.socket) -> None:
    connection.sendall(BEGUN + b"X-A: " + b"a" * (60 * 1024) + b"\r\n\r\n")

    assert answer(connection) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("packets", [1, 1024])
def test_an_endless_header_is_refused_while_it_is_small(
    connection: socket.socket, packets: int
) -> None:
    connection.sendall(BEGUN + b"X-A: ")
    sent = 0
    try:
        for _ in range(packets):
            connection.sendall(b"a" * (1024 * 1024 // packets))
            sent += 1
    except OSError:
        assert sent  # the server closed it meanwhile
        return

    assert answer(connection) in (b"HTTP/1.1 431 Request Header Fields Too Large", b"")


def test_too_many_headers_are_refused(connection: socket.socket) -> None:
    connection.sendall(BEGUN + b"X-A: a\r\n" * 101 + b"\r\n")

    assert answer(connection) == b"HTTP/1.1 431 Request Header Fields Too Large"


@pytest.mark.parametrize(
    ("limit", "begun"),
    [
        ("HEAD_TIMEOUT_S", b""),
        ("HEAD_TIMEOUT_S", BEGUN),
        ("BODY_TIMEOUT_S", BEGUN.replace(b"GET", b"POST") + b"Content-Length: 100\r\n\r\n{"),
    ],
    ids=["nothing", "head", "body"],
)
def test_an_unfinished_request_is_closed(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch, limit: str, begun: bytes
) -> None:
    monkeypatch.setattr(protocol, limit, 0.2)
    address = connection.getpeername()
    with socket.create_connection(address, timeout=20) as slow:
        slow.sendall(begun)

        received = slow.recv(4096)
        assert received.startswith((b"HTTP/1.1 408 Request Timeout", b"HTTP/1.1 405")), received


def test_a_kept_connection_accepts_the_next_request(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.5)
    for _ in range(3):
        connection.sendall(BEGUN + b"\r\n")

        assert answer(connection) == b"HTTP/1.1 200 OK"


def test_a_client_with_a_key_that_stops_within_its_body_is_closed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "BODY_TIMEOUT_S", 0.2)
    address = urlsplit(api.url)
    head = f"POST /events/ingest HTTP/1.1\r\nHost: gullak\r\nAuthorization: Bearer {api.key}\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=20) as slow:
        slow.sendall(head.encode() + b"Content-Length: 100\r\n\r\n{")

        assert answer(slow) == b"HTTP/1.1 408 Request Timeout"


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as opened:
        yield opened


def received(connection: socket.socket) -> bytes:
    """Everything that the server sends until it closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "begun",
    [POST + CHUNKED + b"0\r\nX-Trailer: ", POST + CHUNKED + b"1;extension="],
    ids=["trailer", "extension"],
)
def test_an_endless_trailer_is_cut_off_while_other_requests_are_served(
    module_api_url: str, begun: bytes
) -> None:
    sent, slowest_s = 0, 0.0
    with connected(module_api_url) as slow, httpx.Client(base_url=module_api_url) as other:
        slow.sendall(begun)
        with pytest.raises(OSError):  # noqa: PT011, PT012 - reset or a broken pipe
            while sent < 32 * MIB:
                slow.sendall(b"a" * MIB)
                sent += MIB
                before = time.monotonic()
                assert other.get("/livez").status_code == 200
                slowest_s = max(slowest_s, time.monotonic() - before)

    assert sent < 16 * MIB
    assert slowest_s < 2


def test_long_bodies_and_pipelined_requests_do_not_count_as_heads(api: Api) -> None:
    body = b'{"email": "ann@example.com",' + b" " * (3 * HEAD_BYTES_MAX) + b'"name": "Ann"}'
    start = POST + f"Authorization: Bearer {api.key}\r\n".encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body[-30_000:-14])
    whole = b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connected(api.url) as client:
        client.sendall(start + whole + start + CHUNKED + chunks + b"0\r\n\r\n")
        client.sendall(BEGUN + b"Connection: close\r\n\r\n")

        answers = received(client)

    assert (answers.count(b"HTTP/1.1 200"), answers.count(b"HTTP/1.1 422")) == (2, 1)


def test_empty_lines_do_not_keep_a_connection_open(
    connection: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.3)
    connection.sendall(BEGUN + b"\r\n")
    assert answer(connection) == b"HTTP/1.1 200 OK"
    began = time.monotonic()
    connection.sendall(b"\r\n")
    received(connection)

    assert time.monotonic() - began < 5


def test_the_connection_that_was_idle_longest_is_closed_for_a_new_one(
    module_api_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(module_api_url) as first, connected(module_api_url) as idle:
        for client in (idle, first):
            client.sendall(BEGUN + b"\r\n")
            assert answer(client) == b"HTTP/1.1 200 OK"
        monkeypatch.setattr(protocol, "CONNECTIONS_MAX", 2)
        with connected(module_api_url) as new:
            for client in (new, first):
                client.sendall(BEGUN + b"\r\n")
                assert answer(client) == b"HTTP/1.1 200 OK"
            assert idle.recv(1) == b""


def test_a_connection_is_refused_while_all_others_are_busy(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(api.url) as working:
        start = POST + f"Authorization: Bearer {api.key}\r\n".encode()
        working.sendall(start + b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.3)
        monkeypatch.setattr(protocol, "CONNECTIONS_MAX", 1)
        with connected(api.url) as new:
            assert answer(new) == b"HTTP/1.1 503 Service Unavailable"


def test_an_unfinished_next_request_does_not_cut_off_the_current_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request waits for a lock. The time limit of the second begins after the first."""
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.3)
    body = b'{"email": "bo@example.com", "name": "Bo"}'
    start = POST + f"Authorization: Bearer {api.key}\r\n".encode()
    with connected(api.url) as client, api.sessions.transaction() as conn:
        conn.exec_driver_sql("LOCK TABLE customers IN ACCESS EXCLUSIVE MODE")
        client.sendall(start + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"GET /li")
        time.sleep(1)
        conn.rollback()

        answers = received(client)

    assert answers.startswith(b"HTTP/1.1 200")
    assert answers.count(b"HTTP/1.1 408") == 1


def test_an_upgrade_that_is_not_served_is_not_logged(
    module_api_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    with caplog.at_level(logging.INFO, "uvicorn.error"), connected(module_api_url) as client:
        client.sendall(BEGUN + upgrade)

        assert received(client).startswith(b"HTTP/1.1 200")
    assert "WebSocket" not in caplog.text
