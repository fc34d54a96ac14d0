"""Requests have limits of size and time that hold before authentication."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from api import protocol
from support.edge import Api

BEGUN = b"GET /livez HTTP/1.1\r\nHost: gullak\r\n"


@pytest.fixture
def connection(module_api_url: str) -> Iterator[socket.socket]:
    address = urlsplit(module_api_url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as opened:
        yield opened


def answer(connection: socket.socket) -> bytes:
    """The status line; nothing if the connection was closed without one."""
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
        assert sent  # it was closed meanwhile
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
