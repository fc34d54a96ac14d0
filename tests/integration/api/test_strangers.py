"""Requests without a valid key or signature cost Postgres little, and delay no other client."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
import pytest

from support.edge import Api

FORGED = f"gk_{'a' * 12}_" + "{:043d}"


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The statements, and the connections, of this process."""
    seen: list[str] = []
    execute, connect = psycopg.Cursor.execute, psycopg.Connection.connect

    def note_statement(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        seen.append(str(query))
        return execute(self, query, *args, **options)

    def note_connection(*args: Any, **options: Any) -> Any:
        seen.append("connect")
        return connect(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(psycopg.Cursor, "execute", note_statement)
        patched.setattr(psycopg.Connection, "connect", note_connection)
        patched.setattr(psycopg, "connect", note_connection)
        yield seen


def answers(api: Api, keys: list[str]) -> list[httpx.Response]:
    with ThreadPoolExecutor(16) as threads, api.client() as client:

        def ask(key: str) -> httpx.Response:
            return client.get("/customers", headers={"Authorization": f"Bearer {key}"})

        return list(threads.map(ask, keys))


def statuses(api: Api, keys: list[str]) -> list[int]:
    return [answer.status_code for answer in answers(api, keys)]


@pytest.mark.parametrize("key", ["nonsense", "gk_short_x", f"gk_{'A' * 12}_{'x' * 43}", "x" * 5000])
def test_a_malformed_key_opens_no_session(
    api: Api, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    with counted(monkeypatch) as seen:
        found = statuses(api, [key] * 3)

    assert (found, seen) == ([401] * 3, [])


def test_an_address_that_guesses_keys_is_limited_but_valid_keys_still_work(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = statuses(api, [api.key])
    with counted(monkeypatch) as seen:
        guesses = answers(api, [FORGED.format(number) for number in range(300)])
        accepted += statuses(api, [api.key] * 20)

    guessed = [answer.status_code for answer in guesses]
    assert set(guessed) == {401, 429}
    assert all(int(each.headers["Retry-After"]) for each in guesses if each.status_code == 429)
    assert guessed.count(401) < 100
    assert sum("api_key_of" in statement for statement in seen) < 100
    assert set(accepted) == {200}


def test_a_repeated_wrong_key_is_looked_up_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses(api, [FORGED.format(0)])
    with counted(monkeypatch) as seen:
        found = [statuses(api, [FORGED.format(0)])[0] for _ in range(40)]

    assert (set(found), seen) == ({401}, [])


def test_readiness_opens_no_new_session(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert httpx.get(f"{api.url}/readyz").status_code == 200
    with counted(monkeypatch) as seen, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: httpx.get(f"{api.url}/readyz").status_code, range(100)))

    assert set(found) == {200}
    assert "connect" not in seen
    assert sum("row_security_active" in statement for statement in seen) < 50


def test_a_webhook_for_an_unknown_provider_account_is_refused_before_its_body_is_read(
    api: Api,
) -> None:
    """The request announces a body and does not send it."""
    host, _, port = api.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(
            b"POST /providers/stripe/webhooks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        )
        answer = client.recv(100)

    assert answer.startswith(b"HTTP/1.1 401")


def test_webhooks_have_their_own_size_limit(api: Api) -> None:
    answer = httpx.post(f"{api.url}/providers/stripe/webhooks", content=b" " * ((1 << 20) + 1))

    assert answer.status_code == 413
