"""The first business and its key, without which nobody can call the API of a fresh stack."""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from metering.access.keys import PERMISSIONS, authenticate, create_key
from metering.errors import UnauthorizedError
from metering.ids import BusinessId
from metering.ledger import statements
from metering.ledger.businesses import create_business
from worker.local.files import API_KEY_FILE, write_private
from worker.session import Sessions, make_engine
from worker.settings import Settings

BUSINESS_NAME: Final = "First business"
KEY_NAME: Final = "gullak up"


def first_key(data_dir: Path, config: Settings) -> str:
    """Return the API key of this data directory, made on first use and kept in D/api_key.

    It may do everything for the oldest business, which is made if there is none.
    """
    path = data_dir / API_KEY_FILE
    sessions = Sessions(make_engine(config))
    try:
        with sessions.transaction() as conn:
            if path.exists() and _is_good(conn, key := path.read_text()):
                return key
            business_id = _oldest(conn) or create_business(conn, BUSINESS_NAME)
            key = create_key(conn, business_id, KEY_NAME, PERMISSIONS).key
        write_private(path, key)
        return key
    finally:
        sessions.engine.dispose()


def _is_good(conn: Connection, key: str) -> bool:
    try:
        authenticate(conn, key)
    except UnauthorizedError:
        return False
    return True


def _oldest(conn: Connection) -> BusinessId | None:
    row = conn.execute(statements.BUSINESSES).first()
    return None if row is None else BusinessId(row.business_id)
