"""SQL that several stores share, a sentence each."""

from typing import Final

from sqlalchemy import text

# The clock that decides about money. Unlike now() it moves on within a transaction, so read after
# locks are held it is later than all that the locks waited for.
CLOCK: Final = text("SELECT clock_timestamp()")
# Make requests with one idempotency key wait for each other. Otherwise the later one would learn
# only from the unique index that it is late, in a broken transaction.
LOCK_KEY: Final = text("""
    SELECT pg_advisory_xact_lock(CAST(:lock AS integer),
        hashtext(:business_id || ' ' || :idempotency_key))
""")
