"""The one gateway: the only code that changes a balance.

Lock the wallets once in sorted order, plan in memory, write the entries with one `COPY` (or one
`INSERT`, if they are few), move the wallets with one `UPDATE`, look for crossed alert thresholds
with one query: the number of statements does not grow with the batch. The caller owns the
transaction.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from metering.clock import to_wire
from metering.copy_format import escape
from metering.db import copy_in
from metering.errors import NotFoundError
from metering.ids import WalletId
from metering.ledger import statements
from metering.ledger.entry import Entry, Posting, Wallet
from metering.ledger.plan import plan_entries
from metering.low_credit.crossing import evaluate

INSERTED_MAX: Final = 4


def post(conn: Connection, postings: Sequence[Posting]) -> list[Entry]:
    """Write the postings as entries, in their order per wallet, and return them.

    Raises:
        NotFoundError: a wallet does not exist.
        InsufficientFundsError, BalanceOutOfRangeError: see `plan_entries`; nothing was written.

    """
    if not postings:
        return []
    wallets = lock_wallets(conn, {posting.wallet_id for posting in postings})
    now = conn.execute(statements.CLOCK).scalar_one()
    entries, moved = plan_entries(wallets, postings, now)
    _write(conn, entries)
    _move(conn, list(moved.values()), now)
    evaluate(conn, list(moved), now)
    return entries


def _write(conn: Connection, entries: Sequence[Entry]) -> None:
    if len(entries) <= INSERTED_MAX:
        conn.execute(statements.INSERT_ENTRIES, [entry._asdict() for entry in entries])
    else:
        copy_in(conn, statements.COPY_ENTRIES, [_line(entry) for entry in entries])


def lock_wallets(conn: Connection, wallet_ids: set[WalletId]) -> dict[WalletId, Wallet]:
    """Return the wallets, locked until the transaction ends.

    Raises:
        NotFoundError: one of them does not exist.

    """
    rows = conn.execute(statements.LOCK_WALLETS, {"wallet_ids": sorted(wallet_ids)})
    wallets = {row.wallet_id: Wallet(*row) for row in rows}
    if missing := wallet_ids - wallets.keys():
        raise NotFoundError("wallet", min(missing))
    return wallets


def _move(conn: Connection, wallets: list[Wallet], now: object) -> None:
    conn.execute(
        statements.MOVE_WALLETS,
        {
            "now": now,
            "wallet_ids": [wallet.wallet_id for wallet in wallets],
            "balances": [wallet.balance_minor for wallet in wallets],
            "remainders": [wallet.remainder for wallet in wallets],
            "versions": [wallet.version for wallet in wallets],
            "chains": [wallet.chain for wallet in wallets],
        },
    )


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
            _bytea(entry.chain),
        )
    )


def _nullable(value: str | None) -> str:
    return r"\N" if value is None else escape(value)


def _bytea(value: bytes | None) -> str:
    return r"\N" if value is None else rf"\\x{value.hex()}"
