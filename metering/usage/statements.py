"""All SQL that finds events, replays dead letters and keeps usage, a sentence each."""

from typing import Final

from sqlalchemy import text

from metering import locks

# --- where events are ---------------------------------------------------------------------------

_USAGE: Final = """u.business_id, u.event_id, u.customer_id, u.event_name, u.event_at, u.metadata,
    u.currency, u.cost_minor, u.batch_id, u.posted_at"""
# Which batch posted an event, and when.
BATCH_OF_KEY: Final = text("""
    SELECT k.batch_id, b.created_at AS posted_at FROM usage_event_keys k
    JOIN usage_batches b USING (batch_id) WHERE k.event_key = CAST(:event_key AS uuid)
""")
# One event of a batch. The time selects the partition, and the batch its blocks.
USAGE_EVENT: Final = text(f"""
    SELECT {_USAGE} FROM usage_events u
    WHERE u.posted_at = :posted_at AND u.batch_id = :batch_id AND u.business_id = :business_id
        AND u.event_id = :event_id
""")
# The entries that debited some batches, by batch and wallet.
ENTRIES_OF_BATCHES: Final = text("""
    SELECT batch_id, customer_id, currency, min(entry_id) AS entry_id FROM ledger_entries
    WHERE batch_id = ANY(:batch_ids) AND business_id = :business_id
        AND customer_id = ANY(:customer_ids)
    GROUP BY batch_id, customer_id, currency
""")
# When a batch began: its rows of usage carry the same moment.
BATCH_TIME: Final = text("SELECT created_at FROM usage_batches WHERE batch_id = :batch_id")
# The entries of a wallet that one batch made.
ENTRIES_OF_BATCH: Final = text("""
    SELECT entry_id FROM ledger_entries WHERE batch_id = :batch_id AND wallet_id = :wallet_id
    ORDER BY version
""")
# The usage of one wallet in one batch, newest first, after a place in that order.
USAGE_OF_ENTRY: Final = text(f"""
    SELECT {_USAGE} FROM usage_events u
    WHERE u.posted_at = :posted_at AND u.batch_id = :batch_id AND u.business_id = :business_id
        AND u.customer_id = :customer_id AND u.currency = :currency
        AND (CAST(:after_at AS timestamptz) IS NULL
            OR (u.event_at, u.event_id) < (CAST(:after_at AS timestamptz), :after_id))
    ORDER BY u.event_at DESC, u.event_id DESC LIMIT :page
""")
_IN_REACH: Final = """(CAST(:before AS timestamptz) IS NULL OR u.posted_at <= :before)
        AND (CAST(:start AS timestamptz) IS NULL OR u.last_event_at >= :start)
        AND (CAST(:end AS timestamptz) IS NULL OR u.first_event_at <= :end)"""
# Batches that hold usage of a business, newest first, after a place in that order.
BATCHES_OF_BUSINESS: Final = text(f"""
    SELECT u.batch_id, u.posted_at FROM usage_of_businesses u
    WHERE u.business_id = :business_id AND {_IN_REACH}
        AND (CAST(:after_at AS timestamptz) IS NULL
            OR (u.posted_at, u.batch_id) < (:after_at, :after_batch))
        AND (NOT :uncharged OR u.has_uncharged)
    ORDER BY u.posted_at DESC, u.batch_id DESC LIMIT :page
""")
# Batches that debited a wallet, newest first, before a version. An entry is written within a minute
# after its batch began, so the time of the entry skips most newer batches before the join.
BATCHES_OF_WALLET: Final = text(f"""
    SELECT e.version, u.batch_id, u.posted_at FROM ledger_entries e
    JOIN usage_batches b ON b.batch_id = e.batch_id
    JOIN usage_of_businesses u ON u.business_id = e.business_id AND u.posted_at = b.created_at
        AND u.batch_id = b.batch_id
    WHERE e.wallet_id = :wallet_id AND e.kind = 'usage' AND {_IN_REACH}
        AND (CAST(:before AS timestamptz) IS NULL
            OR e.created_at <= CAST(:before AS timestamptz) + interval '1 minute')
        AND e.version < :before_version
    ORDER BY e.version DESC LIMIT :page
""")
# Usage of some batches, newest first, after a place in that order. The bounds of time select the
# partitions.
USAGE_OF_BATCHES: Final = text(f"""
    SELECT {_USAGE} FROM usage_events u
    WHERE u.posted_at BETWEEN :oldest AND :newest AND u.batch_id = ANY(:batch_ids)
        AND u.business_id = :business_id
        AND (CAST(:customer_id AS text) IS NULL OR u.customer_id = :customer_id)
        AND (CAST(:event_name AS text) IS NULL OR u.event_name = :event_name)
        AND (CAST(:start AS timestamptz) IS NULL OR u.event_at >= :start)
        AND (CAST(:end AS timestamptz) IS NULL OR u.event_at <= :end)
        AND (CAST(:after_at AS timestamptz) IS NULL
            OR (u.posted_at, u.batch_id, u.event_at, u.event_id) < (:after_at, :after_batch,
                CAST(:after_event_at AS timestamptz), :after_event_id))
    ORDER BY u.posted_at DESC, u.batch_id DESC, u.event_at DESC, u.event_id DESC LIMIT :page
""")

# --- dead letters -------------------------------------------------------------------------------

_REFUSED: Final = """SELECT r.refusal_id, r.business_id, r.event_id, r.customer_id, r.reason,
        r.detail, r.payload, r.batch_id, r.refused_at, r.replayed_at AS resolved_at,
        CASE WHEN r.replayed_at IS NOT NULL THEN coalesce(r.resolution, 'replayed') END
            AS resolution, r.resolution_note
    FROM refused_events r"""
# A dead letter is mended once another event of its id was charged. A conflict is about such an
# event, so it cannot be mended.
_MENDED: Final = """r.reason <> 'conflict'
        AND EXISTS (SELECT FROM usage_event_keys k WHERE k.event_key = r.event_key)"""
# It waits until it is replayed, dismissed or mended.
_WAITS: Final = f"r.replayed_at IS NULL AND NOT ({_MENDED})"
_SELECTED: Final = """(CAST(:customer_id AS text) IS NULL OR r.customer_id = :customer_id)
        AND (CAST(:reason AS text) IS NULL OR r.reason = :reason)
        AND (CAST(:event_id AS text) IS NULL OR r.event_id = :event_id)"""
_OF_BUSINESS: Final = "(CAST(:business_id AS text) IS NULL OR r.business_id = :business_id)"
_NEWEST: Final = f"""{_SELECTED}
        AND (CAST(:after_at AS timestamptz) IS NULL
            OR (r.refused_at, r.refusal_id) < (:after_at, :after_id))
    ORDER BY r.refused_at DESC, r.refusal_id DESC LIMIT :page OFFSET :offset"""
# The waiting dead letter of an event, or the last that stopped waiting.
REFUSAL_OF_KEY: Final = text(f"""
    {_REFUSED} WHERE r.business_id = :business_id AND r.event_key = CAST(:event_key AS uuid)
    ORDER BY r.replayed_at IS NULL DESC, r.refused_at DESC LIMIT 1
""")
# Waiting dead letters of a business, newest first, after a place in that order.
REFUSED_NEWEST: Final = text(f"""
    {_REFUSED} WHERE r.business_id = :business_id AND {_WAITS} AND {_NEWEST}
""")
# The same for those that no longer wait.
RESOLVED_NEWEST: Final = text(f"""
    {_REFUSED} WHERE r.business_id = :business_id AND r.replayed_at IS NOT NULL AND {_NEWEST}
""")
# One dead letter of this business.
REFUSAL: Final = text(f"""
    {_REFUSED} WHERE r.business_id = :business_id AND r.refusal_id = :refusal_id
""")
# A page of waiting dead letters of a business or of all, oldest first.
REFUSED: Final = text(f"""
    {_REFUSED} WHERE {_WAITS} AND r.refusal_id > :after AND {_OF_BUSINESS} AND {_SELECTED}
    ORDER BY r.refusal_id LIMIT :page
""")
# A page of those that no longer wait, newest first.
RESOLVED: Final = text(f"""
    {_REFUSED} WHERE r.replayed_at IS NOT NULL AND {_OF_BUSINESS} AND {_SELECTED}
    ORDER BY r.refusal_id DESC LIMIT :page
""")
# Dismiss waiting dead letters of a business, by their ids or by the filters.
DISMISS: Final = text(f"""
    UPDATE refused_events r
    SET replayed_at = now(), resolution = 'dismissed', resolution_note = :note
    WHERE r.business_id = :business_id AND {_WAITS}
        AND (CAST(:refusal_ids AS bigint[]) IS NULL OR r.refusal_id = ANY(:refusal_ids))
        AND {_SELECTED}
""")
# A page of dead letters without a mark that they were resolved, of all businesses.
WAITING_PAGE: Final = text("""
    SELECT business_id, refusal_id FROM refused_events
    WHERE replayed_at IS NULL AND (business_id, refusal_id) > (:business_id, :refusal_id)
    ORDER BY business_id, refusal_id LIMIT :page
""")
# Mark dead letters as mended. Lists leave them out before that.
MARK_MENDED: Final = text(f"""
    UPDATE refused_events r SET replayed_at = now(), resolution = 'mended'
    WHERE r.refusal_id = ANY(:refusal_ids) AND r.replayed_at IS NULL AND {_MENDED}
""")
# Mark dead letters as sent again, unless a newer batch has refused them meanwhile.
MARK_REPLAYED: Final = text("""
    UPDATE refused_events r SET replayed_at = now()
    FROM unnest(CAST(:refusal_ids AS bigint[]), CAST(:batch_ids AS bigint[]))
        AS sent (refusal_id, batch_id)
    WHERE r.refusal_id = sent.refusal_id AND r.batch_id = sent.batch_id
""")

# --- retention ----------------------------------------------------------------------------------

# One maintenance run at a time.
TRY_MAINTENANCE: Final = text(f"SELECT pg_try_advisory_xact_lock({locks.MAINTENANCE}, 0)")
# The day by the clock of the database.
TODAY: Final = text("SELECT (now() AT TIME ZONE 'UTC')::date")
# The names of the partitions of kept usage.
PARTITIONS: Final = text("""
    SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'usage_events'::regclass ORDER BY c.relname
""")
# Whether the default partition holds rows of a day, which then stay there.
DEFAULT_HOLDS: Final = text("""
    SELECT EXISTS (SELECT 1 FROM usage_events_default
        WHERE posted_at >= CAST(:first AS date) AND posted_at < CAST(:last AS date))
""")
# Delete old rows of the default partition.
CLEAR_DEFAULT: Final = text("""
    DELETE FROM usage_events_default WHERE posted_at < CAST(:first AS date)
""")
# Delete the notes about batches whose rows are gone.
CLEAR_NOTES: Final = text("DELETE FROM usage_of_businesses WHERE posted_at < CAST(:first AS date)")
# Add new rows to the BRIN index of batches, in the partitions of two days and the default one.
# Until then, a search for a batch reads all of the new rows.
SUMMARIZE: Final = text("""
    SELECT coalesce(sum(brin_summarize_new_values(i.inhrelid::regclass)), 0)
    FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhrelid
    JOIN pg_class c ON c.oid = x.indrelid
    WHERE i.inhparent = 'usage_events_of_batch'::regclass
        AND (c.relname = 'usage_events_default' OR c.relname = ANY(CAST(:names AS text[])))
""")

# --- counts -------------------------------------------------------------------------------------

# The events that wait as dead letters, by reason, over all businesses.
REFUSED_WAITING: Final = text("""
    SELECT reason, count(*) AS events FROM refused_events WHERE replayed_at IS NULL
    GROUP BY reason ORDER BY reason
""")
# Where all events ended, over all batches.
TOTALS: Final = text("""
    SELECT coalesce(sum(posted_count), 0)::bigint AS posted,
        coalesce(sum(duplicate_count), 0)::bigint AS duplicate,
        coalesce(sum(refused_count), 0)::bigint AS refused,
        coalesce(sum(unmetered_count), 0)::bigint AS unmetered,
        coalesce(sum(replayed_count), 0)::bigint AS replayed
    FROM usage_batches
""")
