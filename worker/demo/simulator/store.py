"""The local gateway's payments, in a SQLite file: each change is on disk before it is answered."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from metering.clock import to_wire, utc_now
from metering.errors import (
    FieldProblem,
    IdempotencyConflictError,
    InvalidInputError,
    NotFoundError,
)
from metering.ids import new_id
from worker.demo.simulator import statements
from worker.demo.simulator.wire import (
    DisputeStep,
    NewPayment,
    Payment,
    PaymentStatus,
    Reversal,
    ReversalKind,
    dispute_event,
    payment_event,
    refund_event,
)

BUSY_TIMEOUT_S: Final = 10
# Waits between the attempts of a webhook that is not taken; the last one is repeated.
RETRY_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)

# What a payment method makes of a payment: its status, and why it failed.
_OUTCOMES: Final[dict[str, tuple[PaymentStatus, str | None]]] = {
    "pm_ok": ("succeeded", None),
    "pm_hang": ("succeeded", None),
    "pm_500": ("succeeded", None),
    "pm_declined": ("failed", "card_declined"),
    "pm_pending": ("pending", None),
}


@dataclass(frozen=True, slots=True)
class DueWebhook:
    """A webhook to be sent now."""

    number: int
    webhook_id: str
    body: bytes
    attempts: int


class Store:
    """Payments, and what is to be told of them. Thread-safe: each call has its own connection.

    `pending_s`: how long a pending payment of `pm_pending` takes to succeed by itself; None: for
    ever.
    """

    def __init__(self, path: Path, pending_s: float | None) -> None:
        self._path, self._pending_s = path, pending_s
        with self._transaction() as conn:
            for statement in statements.SCHEMA:
                conn.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that no other runs beside, and that is on disk when it ends."""
        with closing(sqlite3.connect(self._path, BUSY_TIMEOUT_S, isolation_level=None)) as conn:
            conn.execute("PRAGMA synchronous = FULL")
            with conn:
                conn.execute("BEGIN IMMEDIATE")
                yield conn

    # --- payments ---------------------------------------------------------------------------

    def make(self, key: str, asked: NewPayment) -> tuple[Payment, bool]:
        """Return the payment of a key, and whether it was made just now.

        Raises:
            IdempotencyConflictError: the key was used before, with another request.
            InvalidInputError: nobody knows the payment method.

        """
        status, failure = _outcome(asked.payment_method)
        takes_s = self._pending_s if asked.payment_method == "pm_pending" else None
        values = {
            "payment_id": new_id("pay"),
            "idempotency_key": key,
            "request": asked.model_dump_json(),
            "status": status,
            "failure": failure,
            "succeeds_at": None if takes_s is None else time.time() + takes_s,
            "created_at": _now(),
        }
        with self._transaction() as conn:
            is_new = conn.execute(statements.ADD_PAYMENT, values).rowcount == 1
            (payment,) = _payments(conn, idempotency_key=key)
            if payment.request != values["request"]:
                raise IdempotencyConflictError(key)
            if is_new and status != "pending":
                _tell(conn, *payment_event(payment, [], _now()))
        return payment, is_new

    def payments(self, key: str | None = None) -> list[Payment]:
        """Return all payments ever made, the oldest first, or the one of a key."""
        with self._transaction() as conn:
            return _payments(conn, idempotency_key=key)

    def payment(self, payment_id: str) -> Payment:
        """Return a payment, or raise `NotFoundError`."""
        with self._transaction() as conn:
            return _payment(conn, payment_id)

    def end(self, payment_id: str, status: PaymentStatus, failure: str | None = None) -> Payment:
        """End a payment if it is pending; return what it is then."""
        with self._transaction() as conn:
            return _end(conn, payment_id, status, failure)

    def end_due(self) -> None:
        """Let the pending payments succeed whose time has come."""
        with self._transaction() as conn:
            for (payment_id,) in conn.execute(statements.DUE_PAYMENTS, (time.time(),)).fetchall():
                _end(conn, payment_id, "succeeded", None)

    # --- refunds and disputes ---------------------------------------------------------------

    def refund(self, payment_id: str, amount_minor: int | None) -> Reversal:
        """Refund a payment that has succeeded, at once."""
        with self._transaction() as conn:
            payment, refund = _reverse(conn, payment_id, "refund", "succeeded", amount_minor)
            _tell(conn, *refund_event(payment, refund, _now()))
        return refund

    def dispute(self, payment_id: str, amount_minor: int | None) -> Reversal:
        """Open a dispute of a payment that has succeeded."""
        with self._transaction() as conn:
            payment, dispute = _reverse(conn, payment_id, "dispute", "opened", amount_minor)
            _tell(conn, *dispute_event(payment, dispute, _now()))
        return dispute

    def take_further(self, dispute_id: str, step: DisputeStep) -> Reversal:
        """Let a dispute go on, or end."""
        with self._transaction() as conn:
            conn.execute(statements.SET_DISPUTE, (step, dispute_id))
            found = _reversals(conn, reversal_id=dispute_id)
            if not found or found[0].kind != "dispute":
                raise NotFoundError("dispute", dispute_id)
            (dispute,) = found
            _tell(conn, *dispute_event(_payment(conn, dispute.payment_id), dispute, _now()))
        return dispute

    # --- webhooks ---------------------------------------------------------------------------

    def webhooks(self) -> list[dict[str, object]]:
        """Return what was told, the oldest first."""
        names = ("webhook_id", "type", "attempts", "delivered_at")
        with self._transaction() as conn:
            rows = conn.execute(statements.WEBHOOKS).fetchall()
        return [dict(zip(names, row, strict=True)) for row in rows]

    def resend(self) -> None:
        """Let all webhooks be sent once more."""
        with self._transaction() as conn:
            conn.execute(statements.RESEND, (time.time(),))

    def due_webhook(self) -> DueWebhook | None:
        """Return the next webhook to be sent."""
        with self._transaction() as conn:
            row = conn.execute(statements.DUE_WEBHOOK, (time.time(),)).fetchone()
        return None if row is None else DueWebhook(*row)

    def note_attempt(self, webhook: DueWebhook, *, is_taken: bool) -> None:
        """Note what came of sending one."""
        wait_s = RETRY_S[min(webhook.attempts, len(RETRY_S) - 1)]
        values = {
            "number": webhook.number,
            "due_at": time.time() + wait_s,
            "delivered_at": _now() if is_taken else None,
        }
        with self._transaction() as conn:
            conn.execute(statements.WEBHOOK_TRIED, values)


def _now() -> str:
    return to_wire(utc_now())


def _outcome(payment_method: str | None) -> tuple[PaymentStatus, str | None]:
    if payment_method is None:
        return "pending", None
    try:
        return _OUTCOMES[payment_method]
    except KeyError:
        known = ", ".join(_OUTCOMES)
        raise InvalidInputError(FieldProblem("payment_method", f"is not one of {known}")) from None


def _payments(
    conn: sqlite3.Connection, *, idempotency_key: str | None = None, payment_id: str | None = None
) -> list[Payment]:
    values = {"idempotency_key": idempotency_key, "payment_id": payment_id}
    return [Payment(*row) for row in conn.execute(statements.PAYMENTS, values)]


def _payment(conn: sqlite3.Connection, payment_id: str) -> Payment:
    found = _payments(conn, payment_id=payment_id)
    if not found:
        raise NotFoundError("payment", payment_id)
    return found[0]


def _reversals(
    conn: sqlite3.Connection, *, payment_id: str | None = None, reversal_id: str | None = None
) -> list[Reversal]:
    values = {"payment_id": payment_id, "reversal_id": reversal_id}
    return [Reversal(*row) for row in conn.execute(statements.REVERSALS, values)]


def _end(
    conn: sqlite3.Connection, payment_id: str, status: PaymentStatus, failure: str | None
) -> Payment:
    values = {"payment_id": payment_id, "status": status, "failure": failure}
    has_ended = conn.execute(statements.END_PAYMENT, values).rowcount == 1
    payment = _payment(conn, payment_id)
    if has_ended:
        _tell(conn, *payment_event(payment, _reversals(conn, payment_id=payment_id), _now()))
    return payment


def _reverse(
    conn: sqlite3.Connection,
    payment_id: str,
    kind: ReversalKind,
    status: str,
    amount_minor: int | None,
) -> tuple[Payment, Reversal]:
    payment = _payment(conn, payment_id)
    if payment.status != "succeeded":
        raise InvalidInputError(FieldProblem("payment_id", "has not succeeded"))
    amount_minor = amount_minor or payment.asked.amount
    if amount_minor > payment.asked.amount:
        raise InvalidInputError(FieldProblem("amount", "is more than was paid"))
    prefix = "rfd" if kind == "refund" else "dp"
    made = Reversal(new_id(prefix), payment_id, kind, status, amount_minor, _now())
    values = {name: getattr(made, name) for name in Reversal.__slots__}
    conn.execute(statements.ADD_REVERSAL, values)
    return payment, made


def _tell(conn: sqlite3.Connection, type_: str, body: bytes) -> None:
    values = {"webhook_id": new_id("msg"), "type": type_, "body": body, "due_at": time.time()}
    conn.execute(statements.ADD_WEBHOOK, values)
