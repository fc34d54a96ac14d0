"""Sends the simulator's events, signed, one after the other, until each is taken."""

import hmac
import sqlite3
import time
from contextlib import suppress
from hashlib import sha256
from threading import Event, Thread
from typing import Final

import httpx

from worker.demo.simulator.account import Account
from worker.demo.simulator.store import Store

TICK_S: Final = 0.1
TIMEOUT_S: Final = 5.0


class Notifier:
    """A thread that lets payments succeed when they are due, and sends events to `url`.

    Without a `url` events wait. `secret`: see `signature`.
    """

    def __init__(self, store: Store, url: str | None, secret: str) -> None:
        self._store, self._url, self._secret = store, url, secret
        self._news = Event()
        self._http = httpx.Client(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False)

    def start(self) -> None:
        """Run for as long as the process does."""
        Thread(target=self._run, name="notifier", daemon=True).start()

    def wake(self) -> None:
        """Look at once: something may be due."""
        self._news.set()

    def _run(self) -> None:
        while True:
            self._news.wait(TICK_S)
            self._news.clear()
            with suppress(sqlite3.OperationalError):  # busy for long: the next tick tries again
                self._work()

    def _work(self) -> None:
        while due := self._store.due("payment_intent"):
            with self._store.open() as books:
                Account(books, "").succeed(due.id)
        while self._url is not None and (due := self._store.due("event")):
            self._store.note_sent(due, is_taken=self._send(self._url, due.body.encode()))

    def _send(self, url: str, body: bytes) -> bool:
        headers = {
            "Content-Type": "application/json",
            "Stripe-Signature": signature(body, self._secret, int(time.time())),
        }
        with suppress(httpx.HTTPError, httpx.InvalidURL):
            return self._http.post(url, content=body, headers=headers).is_success
        return False


def signature(body: bytes, secret: str, signed_at: int) -> str:
    """Return the value of `Stripe-Signature` for a body."""
    digest = hmac.new(secret.encode(), f"{signed_at}.".encode() + body, sha256).hexdigest()
    return f"t={signed_at},v1={digest}"
