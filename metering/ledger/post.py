"""The one gateway: the only code that changes a balance.

Lock the wallets once in sorted order, plan in memory, write the entries with one COPY (or one
INSERT, if they are few), consume lots, update the wallets, evaluate the low-credit rules, publish
webhooks. The number of statements does not grow with the batch. Low credit is a policy of the
ledger, so the gateway applies it. The caller owns the transaction.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from metering.clock import to_wire
from metering.copy_format import array, escape
from metering.db import copy_in, database_now
from metering.errors import NotFoundError
from metering.ids import WalletId
from metering.ledger import statements
from metering.ledger.entry import Entry, Posting, Wallet
from metering.ledger.lots.book import LotBook, needing_lots, open_books, write_books
from metering.ledger.notices import publish_notices
from metering.ledger.plan import plan_entries
from metering.low_credit.crossing import evaluate

INSERTED_MAX: Final = 4


def post(conn: Connection, postings: Sequence[Posting]) -> list[Entry]:
    """Write the postings as entries, in their order per wallet, and return them.

    Raises: NotFoundError if a wallet does not exist. InsufficientFundsError,
    BalanceOutOfRangeError: see `plan_entries` and `LotBook.apply`. LotRangeError if a posting takes
    more from a lot than is left. Nothing was written.
    """
    if not postings:
        return []
    wallets = lock_wallets(conn, {posting.wallet_id for posting in postings})
    now = database_now(conn)
    entries, moved = plan_entries(wallets, postings, now)
    named = [move.lot_id for posting in postings for move in posting.lot_moves]
    books = open_books(conn, wallets, needing_lots(moved, postings), now, named)
    for entry, posting in zip(entries, postings, strict=True) if books else ():
        if entry.wallet_id in books:
            books[entry.wallet_id].apply(entry, posting)
    closed = [book.close(moved[wallet_id]) for wallet_id, book in books.items()]
    _write(conn, entries)
    write_books(conn, list(books.values()))
    _move(conn, [wallet for wallet in moved.values() if wallet.wallet_id not in books], now)
    _turn(conn, closed, now)
    evaluate(conn, list(moved), now)
    publish_notices(conn, entries, now)
    return entries


def refresh_current_lots(conn: Connection, wallet_ids: set[WalletId]) -> None:
    """Select the current lots again, after a lot was frozen or freed or has expired.

    Raises: NotFoundError if a wallet does not exist.
    """
    if not wallet_ids:
        return
    books = look_into(conn, wallet_ids)
    now = database_now(conn)
    closed = [book.close(book.wallet) for book in books.values()]
    write_books(conn, list(books.values()))
    _turn(conn, closed, now)
    evaluate(conn, list(books), now)


def look_into(conn: Connection, wallet_ids: set[WalletId]) -> dict[WalletId, LotBook]:
    """Lock wallets; return their lots. Raises: NotFoundError if a wallet does not exist."""
    wallets = lock_wallets(conn, wallet_ids)
    now = database_now(conn)
    return open_books(conn, wallets, wallet_ids, now)


def open_book(conn: Connection, wallet_id: WalletId) -> LotBook:
    """Lock a wallet; return its lots. Raises: NotFoundError if it does not exist."""
    return look_into(conn, {wallet_id})[wallet_id]


def _write(conn: Connection, entries: Sequence[Entry]) -> None:
    if len(entries) <= INSERTED_MAX:
        conn.execute(statements.INSERT_ENTRIES, [entry._asdict() for entry in entries])
    else:
        copy_in(conn, statements.COPY_ENTRIES, [_line(entry) for entry in entries])


def lock_wallets(conn: Connection, wallet_ids: set[WalletId]) -> dict[WalletId, Wallet]:
    """Lock wallets until the transaction ends; return them.

    Raises: NotFoundError if one of them does not exist.
    """
    rows = conn.execute(statements.LOCK_WALLETS, {"wallet_ids": array(sorted(wallet_ids))})
    wallets = {WalletId(row[0]): Wallet._make(row) for row in rows}
    if missing := wallet_ids - wallets.keys():
        raise NotFoundError("wallet", min(missing))
    return wallets


def _move(conn: Connection, wallets: Sequence[Wallet], now: datetime) -> None:
    """Write wallets whose current lot stays the same."""
    if wallets:
        conn.execute(statements.MOVE_WALLETS, _columns(wallets, statements.MOVED, now))


def _turn(conn: Connection, wallets: Sequence[Wallet], now: datetime) -> None:
    """Write wallets whose current lot or frozen credit may have changed."""
    if wallets:
        conn.execute(statements.TURN_WALLETS, _columns(wallets, statements.TURNED, now))


def _columns(wallets: Sequence[Wallet], fields: Iterable[str], now: datetime) -> dict[str, object]:
    columns = dict(zip(Wallet._fields, zip(*wallets, strict=True), strict=True))
    return {"now": now, **{name: array(columns[name]) for name in ("wallet_id", *fields)}}


def _line(entry: Entry) -> str:
    """Write an entry for COPY, columns in the order of `statements.COPY_ENTRIES`."""
    return "\t".join(
        (
            entry.entry_id,
            entry.wallet_id,
            str(entry.version),
            entry.business_id,
            entry.customer_id,
            entry.currency,
            str(entry.amount_minor),
            "t" if entry.is_credit else "f",
            str(entry.before_minor),
            str(entry.after_minor),
            entry.event_type,
            entry.kind,
            _nullable(entry.reason),
            _nullable(entry.reference),
            _nullable(entry.idempotency_key),
            _bytea(entry.request_digest),
            r"\N" if entry.batch_id is None else str(entry.batch_id),
            str(entry.event_count),
            format(entry.exact_cost, "f"),
            format(entry.remainder_before, "f"),
            format(entry.remainder_after, "f"),
            escape(entry.metadata_json),
            to_wire(entry.created_at),
            r"\N" if entry.debited_before_minor is None else str(entry.debited_before_minor),
            _bytea(entry.chain),
        )
    )


def _nullable(value: str | None) -> str:
    return r"\N" if value is None else escape(value)


def _bytea(value: bytes | None) -> str:
    return r"\N" if value is None else rf"\\x{value.hex()}"
