"""The demo's webhook receiver: an HTTP server that believes nothing without a valid signature."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, Final, NamedTuple

from standardwebhooks import Webhook, WebhookVerificationError

HOST: Final = "127.0.0.1"
BODY_BYTES_MAX: Final = 1 << 16
TIMEOUT_S: Final = 10


class Alert(NamedTuple):
    """A low-credit webhook: `kind` is `low` or `recovered`, amounts in minor units."""

    kind: str
    threshold_minor: int
    balance_minor: int


WalletKey = tuple[str, str]  # customer id, currency
Alerts = dict[WalletKey, dict[int, Alert]]  # by their number


class Inbox:
    """Checks and keeps webhooks. Thread-safe."""

    def __init__(self) -> None:
        self.url = ""
        self.repeated = self.bad_signatures = self.malformed = 0
        self._webhook: Webhook | None = None
        self._lock = Lock()
        self._ids: set[str] = set()
        self._alerts: Alerts = defaultdict(dict)

    def open(self, secret: str) -> None:
        """Take webhooks from now on: the endpoint, and so its secret, is made after the server."""
        self._webhook = Webhook(secret)

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """Take one call; return the HTTP status to answer with."""
        if self._webhook is None:
            return 503
        with self._lock:
            try:
                said = self._webhook.verify(body, headers)
                self._keep(next(v for k, v in headers.items() if k.lower() == "webhook-id"), said)
            except WebhookVerificationError:
                self.bad_signatures += 1
                return 401
            except (KeyError, TypeError, ValueError):
                self.malformed += 1
                return 400
        return 204

    def _keep(self, webhook_id: str, said: Any) -> None:
        data = said["data"]
        kind = str(said["type"]).removeprefix("credit.balance_")
        alert = Alert(kind, int(data["threshold_amount"]), int(data["available_balance"]))
        numbered = self._alerts[str(data["customer_id"]), str(data["currency"])]
        if webhook_id in self._ids:
            self.repeated += 1
        elif numbered.setdefault(int(data["sequence"]), alert) is not alert:
            self.malformed += 1  # two webhooks with one number
        self._ids.add(webhook_id)

    @property
    def count(self) -> int:
        """Distinct webhooks until now."""
        return len(self._ids)

    def alerts(self) -> Alerts:
        """Return what has arrived until now."""
        with self._lock:
            return {wallet: dict(numbered) for wallet, numbered in self._alerts.items()}


@contextmanager
def receiving() -> Iterator[Inbox]:
    """Listen on a free local port; yield the inbox with the URL of the server."""
    inbox = Inbox()
    with ThreadingHTTPServer((HOST, 0), _handler(inbox)) as server:
        inbox.url = f"http://{HOST}:{server.server_port}/webhooks"
        thread = Thread(target=server.serve_forever, args=(0.1,), name="receiver", daemon=True)
        thread.start()
        try:
            yield inbox
        finally:
            server.shutdown()


def _handler(inbox: Inbox) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_S

        def do_POST(self) -> None:  # the name that http.server looks for
            length = self.headers.get("Content-Length", "")
            too_long = not length.isdigit() or int(length) > BODY_BYTES_MAX
            status = (
                413 if too_long else inbox.take(dict(self.headers), self.rfile.read(int(length)))
            )
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Say nothing: the display counts the alerts."""

    return Handler
