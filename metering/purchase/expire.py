"""Expired credit is taken out of the books; and businesses are told before it comes to that.

Nothing depends on when this runs: a debit looks at the clock itself and burns no lot whose time is
over. Here only the entry is written that says so.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import structlog
from sqlalchemy import Connection

from metering.clock import to_wire
from metering.db import DATABASE_ERRORS, Transactions, cause_name
from metering.ids import LotId, WalletId
from metering.ledger.entry import LotMove, Posting
from metering.ledger.lots.book import LotBook
from metering.ledger.post import look_into, post, settle_lots
from metering.purchase import statements
from metering.webhook.outbox import Notice, publish

log = structlog.get_logger("gullak.expire")

PAGE_LOTS: Final = 500
PAGES_MAX: Final = 40
# Wallets that others hold and that are waited for in one run: each takes a second at most.
HELD_MAX: Final = 3


def expire_credit(transaction: Transactions, page: int = PAGE_LOTS) -> int:
    """Take expired credit out, a page per transaction; return the number of entries.

    Wallets that others are at work with are passed over, and waited for at the end, a few of them
    and each by itself: a process that is frozen with one of them holds up no other.
    """
    entries = 0
    for _ in range(PAGES_MAX):
        with transaction() as conn:
            lots, written = expire_page(conn, page)
        entries += written
        if lots < page:
            break
    with transaction() as conn:
        busy = list(conn.execute(statements.EXPIRED_BUT_HELD, {"page": HELD_MAX}).scalars())
    return entries + sum(_expire_held(transaction, wallet_id) for wallet_id in busy)


def expire_page(conn: Connection, page: int) -> tuple[int, int]:
    """Take out a page of expired lots; return how many were looked at, and how many entries."""
    rows = conn.execute(statements.EXPIRED, {"page": page}).all()
    return len(rows), _expire(conn, {row.wallet_id for row in rows})


def _expire_held(transaction: Transactions, wallet_id: WalletId) -> int:
    """Take out what has expired of a wallet that another process has just held."""
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
    """Take out what has expired of some wallets; return the number of entries."""
    if not wallet_ids:
        return 0
    books = look_into(conn, wallet_ids)
    postings = [posting for book in books.values() for posting in _postings(book)]
    post(conn, postings)
    # A lot that was used up to the last unit is over without an entry.
    settle_lots(conn, books.keys() - {posting.wallet_id for posting in postings})
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


def tell_expiring(
    transaction: Transactions, days_ahead: Sequence[int], page: int = PAGE_LOTS
) -> int:
    """Tell of lots that come to their end, a page per transaction; return how many were told of."""
    told = 0
    for _ in range(PAGES_MAX):
        with transaction() as conn:
            noted, in_page = tell_page(conn, days_ahead, page)
        told += in_page
        if noted < page:
            break
    return told


def tell_page(conn: Connection, days_ahead: Sequence[int], page: int) -> tuple[int, int]:
    """Tell of lots that come to their end within so many days, once per number of days.

    A lot that is due to be told of more than once at a time is told of with the nearest number.
    Returns how many notices were due, and how many lots were told of.
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
    publish(conn, notices, conn.execute(statements.CLOCK).scalar_one())
    return len(noted), len(notices)
