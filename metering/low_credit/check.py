"""The scheduled check: it finds the crossings that come from new or changed rules.

A run ends before its task does. The next run goes on where it ended, so that every wallet is
reached, however many there are.
"""

from time import monotonic
from typing import Final

from sqlalchemy import Connection

from metering.db import Transactions, database_now
from metering.ids import WalletId
from metering.low_credit import statements
from metering.low_credit.crossing import evaluate

PAGE_WALLETS: Final = 5_000
# Well below the 45 s of a task.
SLICE_S: Final = 20.0
_BEFORE_ALL_IDS: Final = ""


def check_all(transaction: Transactions, slice_s: float = SLICE_S) -> int:
    """Check wallets in pages, a transaction each; return the number of crossings.

    Goes on where the last run ended. Ends with the last wallet, or with the first page after
    `slice_s`; does nothing while another run checks.
    """
    ends_at_s, published, is_over = monotonic() + slice_s, 0, False
    while not is_over:
        is_last, crossings = _check_next(transaction)
        published += crossings
        is_over = is_last or monotonic() >= ends_at_s
    return published


def _check_next(transaction: Transactions) -> tuple[bool, int]:
    """Check the next page; return whether it was the last one, and the number of crossings."""
    with transaction() as conn:
        after = conn.execute(statements.PLACE).scalar_one_or_none()
        if after is None:
            return True, 0
        rows = conn.execute(statements.WALLET_PAGE, {"after": after, "page": PAGE_WALLETS})
        page = [WalletId(row.wallet_id) for row in rows]
        is_last = len(page) < PAGE_WALLETS
        conn.execute(statements.MOVE_PLACE, {"after": _BEFORE_ALL_IDS if is_last else page[-1]})
        return is_last, _check(conn, page)


def _check(conn: Connection, page: list[WalletId]) -> int:
    """Publish the crossings of a page; return their number.

    It looks without locks first, because most pages have none. Then it locks the wallets that seem
    to have crossed and looks again, because a posting may have published the crossing meanwhile. It
    skips locked wallets, so that a frozen process delays no other wallet's alert.
    """
    seeming = conn.execute(statements.CROSSINGS, {"wallet_ids": page})
    crossed = sorted({WalletId(row.wallet_id) for row in seeming})
    if not crossed:
        return 0
    locked = list(conn.execute(statements.LOCK, {"wallet_ids": crossed}).scalars())
    now = database_now(conn)
    return evaluate(conn, locked, now)
