"""Crossings: found under the wallet's lock and written to the outbox in the posting transaction.

A wallet is low by a rule when its spendable credit is at or below the threshold: the balance
without frozen and expired credit; the overdraft does not count. It has recovered when that reaches
`recover_at`, which lies above. In between no alert is sent, so an amount that swings around the
threshold makes one alert, not many.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from metering.clock import to_wire
from metering.copy_format import array
from metering.ids import WalletId
from metering.low_credit import statements
from metering.webhook.outbox import Notice, publish


def evaluate(conn: Connection, wallet_ids: Sequence[WalletId], now: datetime) -> int:
    """Publish the crossings of these locked wallets; return their number.

    It also marks the wallets that want a top-up by their rule.
    """
    found = conn.execute(statements.CROSSINGS, {"wallet_ids": array(wallet_ids)}).all()
    if marked := [row.wallet_id for row in found if row.rule_id is None]:
        mark_top_ups(conn, marked, now)
    rows: Sequence[Row[Any]] = [row for row in found if row.rule_id is not None]
    if not rows or not (rows := _mark(conn, rows, now)):
        return 0
    publish(conn, _notices(rows, _sequences(conn, rows), now), now)
    return len(rows)


def mark_top_ups(conn: Connection, wallet_ids: Sequence[WalletId], now: datetime) -> None:
    """Mark those of the wallets that want a top-up: their credit is at or below the threshold.

    The mark is in a table of `payment.top_ups`, but is set here: only a posting sees every balance
    under its lock. It skips locked rules: to wait with the wallets locked could deadlock, and the
    scheduled check comes later.
    """
    conn.execute(statements.MARK_TOP_UPS, {"wallet_ids": list(wallet_ids), "now": now})


def _mark(conn: Connection, rows: Sequence[Row[Any]], now: datetime) -> Sequence[Row[Any]]:
    """Write the new states; return the crossings, without rules that are being deleted."""
    low = [row for row in rows if not row.was_low]
    recovered = [row for row in rows if row.was_low]
    if recovered:
        conn.execute(statements.MARK_RECOVERED, _columns(recovered))
    if not low:
        return rows
    marked = {
        tuple(mark) for mark in conn.execute(statements.MARK_LOW, {"now": now, **_columns(low)})
    }
    return [row for row in rows if row.was_low or (row.wallet_id, row.rule_id) in marked]


def _columns(rows: Sequence[Row[Any]]) -> dict[str, list[str]]:
    return {
        "wallet_ids": [row.wallet_id for row in rows],
        "rule_ids": [row.rule_id for row in rows],
    }


def _sequences(conn: Connection, rows: Sequence[Row[Any]]) -> dict[WalletId, int]:
    """Number the alerts of each wallet; return the number before its first new one."""
    counts = Counter(WalletId(row.wallet_id) for row in rows)
    numbered = conn.execute(
        statements.NUMBER_ALERTS,
        {"wallet_ids": list(counts), "counts": list(counts.values())},
    )
    return {row.wallet_id: row.alert_sequence - counts[row.wallet_id] for row in numbered}


def _notices(
    rows: Sequence[Row[Any]], sequences: dict[WalletId, int], now: datetime
) -> list[Notice]:
    notices = []
    for row in rows:
        sequences[row.wallet_id] += 1
        notices.append(_notice(row, sequences[row.wallet_id], now))
    return notices


def _notice(row: Row[Any], sequence: int, now: datetime) -> Notice:
    return Notice(
        business_id=row.business_id,
        type="credit.balance_recovered" if row.was_low else "credit.balance_low",
        wallet_id=row.wallet_id,
        sequence=sequence,
        data={
            "customer_id": row.customer_id,
            "wallet": row.currency,
            "currency": row.currency,
            "available_balance": row.spendable_minor,
            "threshold_amount": row.threshold_minor,
            "recover_at_amount": row.recover_at_minor,
            "crossed_at": to_wire(now),
            "sequence": sequence,
        },
    )
