"""The demo's webhook receiver: an HTTP server that believes nothing without a valid signature."""

from collections import defaultdict
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from standardwebhooks import Webhook, WebhookVerificationError

HOST: Final = "127.0.0.1"
BODY_BYTES_MAX: Final = 1 << 16
TIMEOUT_S: Final = 10


class Alert(NamedTuple):
    """What a low-credit webhook says; `kind` is `low` or `recovered`, amounts in minor units."""

    kind: str
    threshold_minor: int
    balance_minor: int


WalletKey = tuple[str, str]  # customer id, currency


@dataclass(frozen=True, slots=True)
class Received:
    """What has arrived: alerts by wallet and number, repetitions, and what failed its check."""

    alerts: dict[WalletKey, dict[int, Alert]]
    webhook_ids: int
    repeated: int
    bad_signatures: int
    malformed: int

    @property
    def count(self) -> int:
        """Distinct alerts."""
        return sum(map(len, self.alerts.values()))


class Inbox:
    """Checks and keeps webhooks. Thread-safe."""

    def __init__(self, secret: str) -> None:
        self._webhook = Webhook(secret)
        self._lock = Lock()
        self._ids: set[str] = set()
        self._alerts: dict[WalletKey, dict[int, Alert]] = defaultdict(dict)
        self._repeated = self._bad_signatures = self._malformed = 0
        self.last = ""

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """Take one call; return the HTTP status to answer with."""
        try:
            said = self._webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError):
            with self._lock:
                self._bad_signatures += 1
            return 401
        with self._lock:
            try:
                self._keep(next(v for k, v in headers.items() if k.lower() == "webhook-id"), said)
            except (KeyError, TypeError, ValueError):
                self._malformed += 1
                return 400
        return 204

    def _keep(self, webhook_id: str, said: Any) -> None:
        data = said["data"]
        kind = str(said["type"]).removeprefix("credit.balance_")
        alert = Alert(kind, int(data["threshold_amount"]), int(data["available_balance"]))
        wallet, sequence = (str(data["customer_id"]), str(data["currency"])), int(data["sequence"])
        if webhook_id in self._ids:
            self._repeated += 1
        elif self._alerts[wallet].setdefault(sequence, alert) is not alert:
            self._malformed += 1  # one number, two webhooks
        self._ids.add(webhook_id)
        self.last = f"{kind}: {wallet[1]} {alert.balance_minor / 100:,.2f}"

    def received(self) -> Received:
        """Return what has arrived until now."""
        with self._lock:
            alerts = {wallet: dict(found) for wallet, found in self._alerts.items()}
            return Received(
                alerts, len(self._ids), self._repeated, self._bad_signatures, self._malformed
            )


class Receiver:
    """Listens on a free local port from the start; calls are answered 503 until it has an inbox.

    The secret is made with the endpoint, and the endpoint with the address: so the inbox is last.
    """

    def __init__(self) -> None:
        self.inbox: Inbox | None = None
        self._server = ThreadingHTTPServer((HOST, 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://{HOST}:{self._server.server_port}/webhooks"
        self._thread = Thread(target=self._serve, name="receiver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.1)

    def _take(self, headers: dict[str, str], body: bytes) -> int:
        return self.inbox.take(headers, body) if self.inbox else 503

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            timeout = TIMEOUT_S

            def do_POST(self) -> None:  # the name that http.server looks for
                length = self.headers.get("Content-Length", "")
                if not length.isdigit() or int(length) > BODY_BYTES_MAX:
                    return self._answer(413)
                return self._answer(take(dict(self.headers), self.rfile.read(int(length))))

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                """Say nothing: the display tells of alerts."""

        return Handler
