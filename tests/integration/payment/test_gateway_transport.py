"""Answers of a provider that do not end, are too large, or redirect."""

import gzip
import socket
import time
from collections.abc import Callable

import httpx
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from metering.payment.transport import ANSWER_BYTES_MAX, bounded_client
from support.webhook_receiver import raw_receiver
from worker.local.port import free_port

HASTY_MS = 300
Serve = Callable[[socket.socket], None]


def answering(body: bytes, *headers: bytes) -> Serve:
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers]

    def serve(peer: socket.socket) -> None:
        peer.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    return serve


def trickling(head: bytes, drop: bytes) -> Serve:
    def serve(peer: socket.socket) -> None:
        peer.sendall(head)
        for _ in range(200):
            peer.sendall(drop)
            time.sleep(0.05)

    return serve


@pytest.mark.parametrize(
    "serve",
    [
        lambda peer: peer.recv(1),
        trickling(b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n"),
        trickling(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
    ],
    ids=["silent", "head", "body"],
)
def test_an_endless_answer_ends_at_the_deadline(serve: Serve) -> None:
    with (
        raw_receiver(serve) as url,
        bounded_client(allow_private=True, timeout_ms=HASTY_MS) as client,
        pytest.raises(httpx.TransportError, match=r"no answer within 0\.3 s"),
    ):
        client.get(url)


@pytest.mark.parametrize("size", [0, ANSWER_BYTES_MAX])
def test_an_answer_of_any_size_up_to_the_limit_is_read(size: int) -> None:
    with raw_receiver(answering(b"x" * size)) as url, bounded_client(allow_private=True) as client:
        assert len(client.get(url).content) == size


def test_a_larger_answer_is_refused() -> None:
    serve = answering(b"x" * (ANSWER_BYTES_MAX + 1))
    with (
        raw_receiver(serve) as url,
        bounded_client(allow_private=True) as client,
        pytest.raises(httpx.TransportError),
    ):
        client.get(url)


def test_an_unrequested_compressed_answer_is_refused() -> None:
    serve = answering(gzip.compress(b"x" * 1000), b"Content-Encoding: gzip")
    with (
        raw_receiver(serve) as url,
        bounded_client(allow_private=True) as client,
        pytest.raises(httpx.TransportError),
    ):
        client.get(url)


def test_no_compressed_answer_is_requested(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/").respond_with_handler(
        lambda request: Response(request.headers["Accept-Encoding"])
    )
    with bounded_client(allow_private=True) as client:
        assert client.get(httpserver.url_for("/")).text == "identity"


def test_a_private_address_is_refused_unless_the_account_names_it() -> None:
    with (
        bounded_client(allow_private=False) as client,
        pytest.raises(httpx.TransportError, match="not public"),
    ):
        client.get("http://127.0.0.1:9/")


def test_a_proxy_of_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with raw_receiver(answering(b"direct")) as url, bounded_client(allow_private=True) as client:
        assert client.get(url).text == "direct"


def test_the_error_of_an_absent_provider_names_it() -> None:
    with (
        bounded_client(allow_private=True) as client,
        pytest.raises(httpx.TransportError, match="refused or failed"),
    ):
        client.get(f"http://127.0.0.1:{free_port()}/")
