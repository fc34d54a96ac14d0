"""Sends the local gateway's webhooks, signed, one after the other, until each is taken."""

import sqlite3
from contextlib import suppress
from threading import Event, Thread
from typing import Final

import httpx

from metering.clock import utc_now
from metering.ids import WebhookEventId
from metering.webhook.sign import signed_headers
from worker.demo.simulator.store import DueWebhook, Store

TICK_S: Final = 0.1
TIMEOUT_S: Final = 5.0


class Notifier:
    """A thread that ends payments whose time has come, and sends what is due to `url`.

    Without a `url` nothing is sent. The secret is one of Standard Webhooks: `whsec_…`.
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
        self._store.end_due()
        while self._url is not None and (webhook := self._store.due_webhook()):
            is_taken = self._send(self._url, webhook)
            self._store.note_attempt(webhook, is_taken=is_taken)

    def _send(self, url: str, webhook: DueWebhook) -> bool:
        headers = signed_headers(
            WebhookEventId(webhook.webhook_id),
            utc_now(),
            webhook.body,
            secrets=[self._secret],
            extra={},
        )
        with suppress(httpx.HTTPError, httpx.InvalidURL):
            return self._http.post(url, content=webhook.body, headers=headers).is_success
        return False
