"""Freeze a lot while its payment is in dispute: it is not spent and does not expire."""

from sqlalchemy import Connection

from metering.ids import LotId, WalletId
from metering.ledger.lots import statements
from metering.ledger.post import lock_wallets, refresh_current_lots


def freeze_lot(conn: Connection, wallet_id: WalletId, lot_id: LotId, *, is_frozen: bool) -> None:
    """Freeze a lot, or free it. It changes nothing if the lot is so already."""
    lock_wallets(conn, {wallet_id})
    values = {"wallet_id": wallet_id, "lot_id": lot_id, "is_frozen": is_frozen}
    changed = conn.execute(statements.FREEZE_LOT, values)
    if changed.rowcount:
        refresh_current_lots(conn, {wallet_id})
