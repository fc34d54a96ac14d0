"""The scheduled check: what posting did not see, because a rule came or changed after it."""

from typing import Final

from metering.db import Transactions
from metering.ids import WalletId
from metering.low_credit import statements
from metering.low_credit.crossing import evaluate

PAGE_WALLETS: Final = 5_000


def check_all(transaction: Transactions) -> int:
    """Walk all wallets in pages, each its own transaction; return how many crossings were told."""
    after, told = "", 0
    while True:
        page, crossings = check_page(transaction, after)
        told += crossings
        if len(page) < PAGE_WALLETS:
            return told
        after = page[-1]


def check_page(transaction: Transactions, after: str) -> tuple[list[WalletId], int]:
    """Check the page of wallets after the id `after`; return its ids and the crossings told.

    Looks without locks first: in most pages nothing has crossed. What seems to have is locked and
    looked at again, because a posting may have told of it meanwhile. A wallet that somebody holds
    is passed over, so that a frozen process holds up no other wallet's alert.
    """
    with transaction() as conn:
        rows = conn.execute(statements.WALLET_PAGE, {"after": after, "page": PAGE_WALLETS})
        page = [WalletId(row.wallet_id) for row in rows]
        seeming = conn.execute(statements.CROSSINGS, {"wallet_ids": page})
        crossed = sorted({WalletId(row.wallet_id) for row in seeming})
        if not crossed:
            return page, 0
        locked = list(conn.execute(statements.LOCK, {"wallet_ids": crossed}).scalars())
        now = conn.execute(statements.CLOCK).scalar_one()
        return page, evaluate(conn, locked, now)
