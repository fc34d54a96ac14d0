"""Receivers of webhooks, and the steps of a worker that delivers to them."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from pytest_httpserver import HTTPServer
from sqlalchemy import Connection, event, text
from standardwebhooks import Webhook
from werkzeug import Request, Response

from metering.clock import utc_now
from metering.ids import BusinessId, EndpointId, WebhookEventId, new_id
from metering.webhook import endpoints
from metering.webhook.deliver import DeliveryPolicy, DeliveryReport, deliver_due
from metering.webhook.endpoints import Endpoint, NewEndpoint, create_endpoint, endpoint_secret
from metering.webhook.outbox import Notice, WebhookType, publish
from metering.webhook.send import HttpSender
from worker.session import Sessions

POLICY = DeliveryPolicy(retry_s=(5, 300), timeout_s=8.0, disable_after=4, claim_for_s=10.0)
# For receivers that use the whole timeout.
SHORT_TIMEOUT_S = 2.0


class Inbox:
    """Records requests and answers with each of `script`; the last answer repeats."""

    def __init__(self, secret: str = "") -> None:
        self.secrets = [secret]
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.script: list[Callable[[], Response]] = [partial(Response, status=204)]

    def __call__(self, request: Request) -> Response:
        headers, body = dict(request.headers), request.get_data()
        for secret in self.secrets:
            Webhook(secret).verify(body, headers)
        self.requests.append((headers, body))
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return answer()

    def answers(self, *statuses: int, headers: dict[str, str] | None = None) -> None:
        self.script = [partial(Response, status=status, headers=headers) for status in statuses]

    @property
    def ids(self) -> list[str]:
        return [headers["Webhook-Id"] for headers, _ in self.requests]

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body in self.requests]


class Bench:
    """A business, its receivers, and the steps of a worker."""

    def __init__(self, sessions: Sessions, server: HTTPServer, sender: HttpSender) -> None:
        self.sessions, self.server, self.sender = sessions, server, sender
        self.policy = POLICY
        self.business_id = self.new_business()

    def new_business(self) -> BusinessId:
        business_id = BusinessId(new_id("bus"))
        self.run("INSERT INTO businesses (business_id, name) VALUES (:b, 'Test')", b=business_id)
        return business_id

    def run(self, statement: str, **values: object) -> list[Any]:
        with self.sessions.transaction() as conn:
            result = conn.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def receiver(
        self,
        *,
        business_id: BusinessId | None = None,
        filter_types: list[str] | None = None,
        url: str | None = None,
    ) -> tuple[Endpoint, Inbox]:
        path = f"/{new_id('path')}"
        with self.sessions.transaction() as conn:
            new = NewEndpoint(
                url=url or self.server.url_for(path),
                filter_types=filter_types,
                headers={"x-token": "ours"},
            )
            made = create_endpoint(conn, business_id or self.business_id, new)
            inbox = Inbox(endpoint_secret(conn, made.business_id, made.endpoint_id))
        self.server.expect_request(path, method="POST").respond_with_handler(inbox)
        return made, inbox

    def publish(
        self, count: int = 1, type_: WebhookType = "credit.added", business_id: str | None = None
    ) -> list[WebhookEventId]:
        notices = [
            Notice(BusinessId(business_id or self.business_id), type_, {"n": n, "text": "₹ \u2028"})
            for n in range(count)
        ]
        with self.sessions.transaction() as conn:
            return publish(conn, notices, utc_now())

    def deliver(self, **changes: Any) -> DeliveryReport:
        return deliver_due(self.sessions.transaction, self.sender, replace(self.policy, **changes))

    @contextmanager
    def impatient(self) -> Iterator[None]:
        patient = self.sender
        self.sender = HttpSender(timeout_s=SHORT_TIMEOUT_S, allow_private=True)
        yield
        self.sender.close()
        self.sender = patient

    def make_due(self) -> None:
        self.run("UPDATE webhook_deliveries SET due_at = now() WHERE status = 'pending'")

    def deliveries(self) -> list[tuple[str, int]]:
        return [
            (row.status, row.attempts)
            for row in self.run(
                "SELECT d.status, d.attempts FROM webhook_deliveries d JOIN webhook_events v"
                " USING (webhook_event_id) WHERE v.business_id = :b ORDER BY 1, 2",
                b=self.business_id,
            )
        ]

    def attempts(self) -> list[Any]:
        return self.run(
            "SELECT a.* FROM webhook_attempts a JOIN webhook_events v USING (webhook_event_id)"
            " WHERE v.business_id = :b ORDER BY a.webhook_event_id, a.attempt",
            b=self.business_id,
        )

    def due_in_s(self) -> float:
        [row] = self.run(
            "SELECT extract(epoch FROM due_at - now()) AS wait_s FROM webhook_deliveries d"
            " JOIN webhook_events v USING (webhook_event_id) WHERE v.business_id = :b",
            b=self.business_id,
        )
        return float(row.wait_s)

    def endpoint(self, endpoint_id: EndpointId) -> Endpoint:
        with self.sessions.transaction() as conn:
            return endpoints.get_endpoint(conn, self.business_id, endpoint_id)


@contextmanager
def raw_receiver(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A receiver that sends raw bytes: `serve` handles each connection in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def handle(peer: socket.socket) -> None:
        with peer:
            peer.settimeout(10)
            try:
                peer.recv(65536)
                serve(peer)
            except OSError:
                pass  # the sender hung up, as it should

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=handle, args=(peer,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def statements_of(sessions: Sessions, action: Callable[[Connection], object]) -> int:
    """Count the statements of `action` in a transaction of its own, without its beginning."""
    seen: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        if not statement.startswith("BEGIN"):
            seen.append(statement)

    event.listen(sessions.engine, "before_cursor_execute", note)
    try:
        with sessions.transaction() as conn:
            action(conn)
    finally:
        event.remove(sessions.engine, "before_cursor_execute", note)
    return len(seen)
