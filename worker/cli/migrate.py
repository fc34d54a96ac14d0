"""`gullak migrate`."""

from worker.log import setup_logging
from worker.migrate import migrate_database
from worker.settings import settings


def migrate() -> None:
    """Bring the database of DATABASE_URL to the newest schema."""
    setup_logging(settings())
    migrate_database(settings())
