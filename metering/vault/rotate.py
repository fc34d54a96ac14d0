"""Seal all stored secrets with the first key; check that they can be opened."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Connection, Row

from metering.db import Transactions
from metering.errors import ConfigurationError, UnreadableSecretError
from metering.vault import Vault, statements, vault_of
from metering.vault.statements import Holder

PAGE_ROWS: Final = 100


def rotate_secrets(transaction: Transactions) -> tuple[int, int]:
    """Seal with the first key what another one sealed, or none; return rows changed, and all rows.

    Raises:
        UnreadableSecretError: no key fits; the rows before are sealed anew.

    """
    changed, total = 0, 0
    for holder in statements.HOLDERS:
        after: str | None = ""
        while after is not None:
            with transaction() as conn:
                rows = conn.execute(holder.page, {"after": after, "page": PAGE_ROWS}).all()
                changed += sum(_renew(conn, holder, row) for row in rows)
            total += len(rows)
            after = rows[-1].key if rows else None
    return changed, total


def check_secrets(conn: Connection) -> None:
    """Check that all sealed secrets can be opened.

    Raises: ConfigurationError if one cannot.
    """
    vault = vault_of(conn)
    try:
        for stored in _all_stored(conn):
            vault.open(stored)
    except UnreadableSecretError as error:
        raise ConfigurationError(error.message) from None


def _all_stored(conn: Connection) -> Iterator[str]:
    for holder in statements.HOLDERS:
        after = ""
        while rows := conn.execute(holder.page, {"after": after, "page": PAGE_ROWS}).all():
            after = rows[-1].key
            for row in rows:
                yield from (value for value in row[1:] if isinstance(value, str))


def _renew(conn: Connection, holder: Holder, row: Row[Any]) -> bool:
    """Seal the secrets of a row again, unless the first key sealed all of them."""
    vault = vault_of(conn)
    stored: dict[str, Any] = dict(zip(holder.columns, row[1:], strict=True))
    if all(_is_fresh(vault, value) for value in stored.values()):
        return False
    fresh = {
        column: _renewed_json(vault, value)
        if column in holder.json_columns
        else value and vault.seal(vault.open(value))
        for column, value in stored.items()
    }
    conn.execute(holder.write, {"key": row.key, **fresh})
    return True


def _is_fresh(vault: Vault, value: str | Mapping[str, str] | None) -> bool:
    """Tell whether a value needs nothing: there is none, or it is sealed with the first key."""
    return not value or (isinstance(value, str) and vault.is_fresh(value))


def _renewed_json(vault: Vault, value: str | Mapping[str, str]) -> str:
    return vault.seal_json(vault.open_json(value))
