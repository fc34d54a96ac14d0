"""The history of a wallet, newest first."""

from typing import Any, Final

import orjson
from sqlalchemy import Connection, Row

from metering.errors import NotFoundError
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
    rows = conn.execute(
        statements.HISTORY,
        {
            "wallet_id": wallet_id,
            "before_version": INT64_MAX if before_version is None else before_version,
            "page": max(1, min(page, PAGE_ENTRIES_MAX)),
        },
    )
    return [entry_of(row) for row in rows]


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
    row = conn.execute(statements.ENTRY, values).one_or_none()
    if row is None:
        raise NotFoundError("ledger entry", entry_id)
    return entry_of(row)


def entry_of(row: Row[Any]) -> Entry:
    """Return the entry in a row of the ledger."""
    values = dict(row._mapping)  # noqa: SLF001
    metadata = values.pop("metadata")
    digest = values.pop("request_digest")
    return Entry(
        **{**values, "chain": bytes(values["chain"])},
        request_digest=None if digest is None else bytes(digest),
        metadata_json=orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS).decode(),
    )
