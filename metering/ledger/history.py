"""The history of a wallet, newest first."""

from typing import Any, Final

import orjson
from sqlalchemy import Connection

from metering.db import get_one, rows
from metering.ids import BusinessId, CustomerId, EntryId, WalletId
from metering.ledger import statements
from metering.ledger.entry import Entry
from metering.money import INT64_MAX

PAGE_ENTRIES_MAX: Final = 1000


def history(
    conn: Connection, wallet_id: WalletId, *, page: int, before_version: int | None = None
) -> list[Entry]:
    """Return up to `page` (1 to 1000) entries older than `before_version` (default: the newest).

    Pass the version of the last entry to get the next page. New entries do not move the pages.
    """
    values = {
        "wallet_id": wallet_id,
        "before_version": INT64_MAX if before_version is None else before_version,
        "page": max(1, min(page, PAGE_ENTRIES_MAX)),
    }
    return rows(stored_entry, conn.execute(statements.HISTORY, values))


def get_entry(
    conn: Connection,
    business_id: BusinessId,
    entry_id: EntryId,
    *,
    customer_id: CustomerId | None = None,
) -> Entry:
    """Return an entry of a business, and of this customer if one is given.

    Raises: NotFoundError.
    """
    values = {"business_id": business_id, "entry_id": entry_id, "customer_id": customer_id}
    return get_one(stored_entry, conn.execute(statements.ENTRY, values), "ledger entry", entry_id)


def stored_entry(
    *, metadata: object, request_digest: bytes | None, chain: bytes, **columns: Any
) -> Entry:
    """Return an entry from the columns of its row."""
    return Entry(
        **columns,
        request_digest=None if request_digest is None else bytes(request_digest),
        metadata_json=orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS).decode(),
        chain=bytes(chain),
    )
