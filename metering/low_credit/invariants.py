"""The invariant of alerts: their numbers have no gap that pruning does not explain."""

from typing import Final

from sqlalchemy import text

from metering.invariants import in_page, invariant

INVARIANTS: Final = (
    invariant(
        "alert numbers are without gaps",
        "wallets",
        text(f"""
            SELECT w.wallet_id, w.alert_sequence, coalesce(e.alerts, 0) AS alerts,
                coalesce(p.alert_count, 0) AS pruned
            FROM wallets w
            LEFT JOIN (
                SELECT wallet_id, count(*) AS alerts FROM webhook_events
                WHERE {in_page("wallet_id")} GROUP BY wallet_id) e USING (wallet_id)
            LEFT JOIN pruned_alerts p USING (wallet_id)
            WHERE {in_page("w.wallet_id")}
                AND w.alert_sequence <> coalesce(e.alerts, 0) + coalesce(p.alert_count, 0)
        """),
    ),
)
