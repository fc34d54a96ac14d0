"""Take expired credit out of the wallets, and announce it before.

Nothing depends on when this runs: a debit checks the clock itself and uses no expired lot. Here
only the entries are written.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import structlog
from sqlalchemy import Connection

from metering.clock import to_wire
from metering.db import DATABASE_ERRORS, Transactions, cause_name, database_now
from metering.ids import LotId, WalletId
from metering.ledger.entry import LotMove, Posting
from metering.ledger.lots.book import LotBook
from metering.ledger.post import look_into, post, refresh_current_lots
from metering.purchase import statements
from metering.webhook.outbox import Notice, publish

log = structlog.get_logger("gullak.expire")

PAGE_LOTS: Final = 500
PAGES_MAX: Final = 40
# Locked wallets that one run waits for: each takes a second at most.
HELD_MAX: Final = 3


def expire_credit(transaction: Transactions, page: int = PAGE_LOTS) -> int:
    """Take expired credit out, a page per transaction; return the number of entries.

    Wallets that are locked are left for the end, where a few of them are waited for, each in its
    own transaction: a frozen process that holds one of them does not block the others.
    """
    entries = 0
    for _ in range(PAGES_MAX):
        with transaction() as conn:
            lots, written = _expire_page(conn, page)
        entries += written
        if lots < page:
            break
    with transaction() as conn:
        busy = list(conn.execute(statements.EXPIRED_BUT_HELD, {"page": HELD_MAX}).scalars())
    return entries + sum(_expire_held(transaction, wallet_id) for wallet_id in busy)


def _expire_page(conn: Connection, page: int) -> tuple[int, int]:
    """Take out a page of expired lots; return how many lots it had, and how many entries."""
    rows = conn.execute(statements.EXPIRED, {"page": page}).all()
    return len(rows), _expire(conn, {row.wallet_id for row in rows})


def _expire_held(transaction: Transactions, wallet_id: WalletId) -> int:
    """Expire the lots of a wallet that another process had locked."""
    try:
        with transaction() as conn:
            conn.execute(statements.WAIT_SHORTLY)
            return _expire(conn, {wallet_id})
    except DATABASE_ERRORS as error:
        if cause_name(error) != "locked":
            raise
        log.info("expiry.waits", wallet_id=wallet_id)
        return 0


def _expire(conn: Connection, wallet_ids: set[WalletId]) -> int:
    """Expire the lots of some wallets; return the number of entries."""
    if not wallet_ids:
        return 0
    books = look_into(conn, wallet_ids)
    postings = [posting for book in books.values() for posting in _postings(book)]
    post(conn, postings)
    # A lot that was used up to the last unit is over without an entry.
    refresh_current_lots(conn, books.keys() - {posting.wallet_id for posting in postings})
    return len(postings)


def _postings(book: LotBook) -> Iterable[Posting]:
    for lot in sorted(book.lots.values(), key=lambda lot: lot.turn):
        left = book.left(lot.lot_id)
        if left and lot.frozen_at is None and lot.has_expired(book.now):
            yield Posting(
                wallet_id=lot.wallet_id,
                kind="expiry",
                is_credit=False,
                amount_minor=left,
                reason=f"expired {to_wire(lot.expires_at)}" if lot.expires_at else None,
                reference=lot.lot_id,
                lot_moves=(LotMove(lot.lot_id, left),),
                may_owe=True,
            )


def announce_expiring(
    transaction: Transactions, days_ahead: Sequence[int], page: int = PAGE_LOTS
) -> int:
    """Announce lots that will expire, a page per transaction; return how many."""
    announced = 0
    for _ in range(PAGES_MAX):
        with transaction() as conn:
            noted, in_page = _announce_page(conn, days_ahead, page)
        announced += in_page
        if noted < page:
            break
    return announced


def _announce_page(conn: Connection, days_ahead: Sequence[int], page: int) -> tuple[int, int]:
    """Announce lots that will expire within so many days, once per number of days.

    If a lot is due for several numbers at once, one webhook names the lowest. Returns how many
    announcements were due, and how many lots were announced.
    """
    values = {"days_ahead": list(days_ahead), "page": page}
    nearest: dict[LotId, int] = {}
    wallet_ids: set[WalletId] = set()
    noted = conn.execute(statements.NOTE_EXPIRING, values).all()
    for wallet_id, lot_id, days in noted:
        wallet_ids.add(wallet_id)
        nearest[lot_id] = min(days, nearest.get(lot_id, days))
    names = {"wallet_ids": sorted(wallet_ids), "lot_ids": sorted(nearest)}
    rows = conn.execute(statements.EXPIRING, names).all()
    notices = [
        Notice(
            business_id=row.business_id,
            type="credit.expiring",
            data={
                "lot_id": row.lot_id,
                "customer_id": row.customer_id,
                "currency": row.currency,
                "source": row.source,
                "amount": row.amount_minor,
                "remaining": row.left_minor,
                "expires_at": to_wire(row.expires_at),
                "days_ahead": nearest[row.lot_id],
            },
        )
        for row in rows
        if row.left_minor > 0
    ]
    publish(conn, notices, database_now(conn))
    return len(noted), len(notices)
