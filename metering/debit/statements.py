"""All SQL of batches, event keys, kept usage and dead letters, a sentence each."""

from typing import Final, LiteralString

from sqlalchemy import text

# --- a batch ------------------------------------------------------------------------------------

# One drain per shard: a lock that ends with the transaction, and with a dead worker's connection.
TRY_SHARD: Final = text("SELECT pg_try_advisory_xact_lock(1735747692, :shard)")
# One run at a time prepares batches of a shard: held over all its batches, by a transaction that
# does nothing else, so it too ends with a dead worker's connection.
TRY_TURN: Final = text("SELECT pg_try_advisory_xact_lock(1735747695, :shard)")
# How far this shard's stream has been settled in this epoch.
CURSOR: Final = text(
    "SELECT shard, epoch, last_stream_id, accepted_count, settled_count, lost_count,"
    " rewound_count FROM drain_cursors"
    " WHERE shard = :shard AND epoch = :epoch"
)
# A number for a batch, before it begins: its rows are written with it ahead of the transaction.
NEXT_BATCH: Final = text("SELECT nextval(pg_get_serial_sequence('usage_batches', 'batch_id'))")
# Begin a batch; its counts are written when they are known.
BEGIN_BATCH: Final = text(
    "INSERT INTO usage_batches (batch_id, shard, epoch, first_stream_id, last_stream_id,"
    " posted_count, duplicate_count, refused_count, unmetered_count, replayed_count)"
    " OVERRIDING SYSTEM VALUE VALUES (:batch_id, :shard, :epoch, :first_stream_id,"
    " :last_stream_id, 0, 0, 0, 0, 0)"
)
# Write where the events of the batch ended.
FINISH_BATCH: Final = text(
    "UPDATE usage_batches SET posted_count = :posted, duplicate_count = :duplicate,"
    " refused_count = :refused, unmetered_count = :unmetered, replayed_count = :replayed"
    " WHERE batch_id = :batch_id"
)
# Move the shard's cursor past what this batch settles; the shard's lock is held.
ADVANCE_CURSOR: Final = text(
    "INSERT INTO drain_cursors (shard, epoch, last_stream_id, accepted_count, settled_count,"
    " lost_count, rewound_count) VALUES (:shard, :epoch, :last_stream_id, :accepted_count,"
    " :settled_count, :lost_count, :rewound_count) ON CONFLICT (shard, epoch) DO UPDATE SET"
    " last_stream_id = excluded.last_stream_id, accepted_count = excluded.accepted_count,"
    " settled_count = excluded.settled_count, lost_count = excluded.lost_count,"
    " rewound_count = excluded.rewound_count, updated_at = now()"
)

# --- keys ---------------------------------------------------------------------------------------

# Take keys, all of them or none: what most batches need. Sorted, for the same reason as below.
COPY_KEYS: Final[LiteralString] = (
    "COPY usage_event_keys (event_key, payload_digest, batch_id) FROM STDIN"
)
# A staging table of this connection: `COPY` cannot skip keys that are taken.
MAKE_STAGE: Final = text(
    "CREATE TEMPORARY TABLE IF NOT EXISTS usage_stage"
    " (event_key uuid NOT NULL, payload_digest bigint NOT NULL) ON COMMIT DELETE ROWS"
)
CLEAR_STAGE: Final = text("DELETE FROM usage_stage")
COPY_STAGE: Final[LiteralString] = "COPY usage_stage (event_key, payload_digest) FROM STDIN"
# Take the keys that are free, in sorted order, so that two shards never wait for each other in a
# circle: with duplicates in flight, unsorted inserts deadlock and lose two orders of magnitude.
CLAIM_KEYS: Final = text(
    "INSERT INTO usage_event_keys (event_key, payload_digest, batch_id)"
    " SELECT event_key, payload_digest, :batch_id FROM usage_stage ORDER BY event_key"
    " ON CONFLICT (event_key) DO NOTHING"
)
# The staged keys that an earlier batch had taken, and whether with the same payload.
TAKEN_KEYS: Final = text(
    "SELECT replace(s.event_key::text, '-', '') AS event_key,"
    " k.payload_digest = s.payload_digest AS same FROM usage_stage s"
    " JOIN usage_event_keys k USING (event_key) WHERE k.batch_id <> :batch_id"
)
# Which of some keys are taken, and by what payload.
CHARGED_KEYS: Final = text(
    "SELECT replace(event_key::text, '-', '') AS event_key, payload_digest"
    " FROM usage_event_keys WHERE event_key = ANY(CAST(:event_keys AS uuid[]))"
)
# Keep one row per posted event.
COPY_EVENTS: Final[LiteralString] = (
    "COPY usage_events (business_id, event_id, customer_id, event_name, event_at, metadata,"
    " currency, cost_minor, batch_id) FROM STDIN"
)

# --- dead letters -------------------------------------------------------------------------------

# Which of some refused events are waiting here already: those are repetitions. Locked, so that a
# replay that marks them afterwards sees that they were refused once more.
WAITING: Final = text(
    "SELECT replace(event_key::text, '-', '') AS event_key, payload_digest FROM refused_events"
    " WHERE event_key = ANY(CAST(:event_keys AS uuid[])) AND replayed_at IS NULL FOR UPDATE"
)
# Keep refused events; one that had been replayed waits again. The batch tells a replay under way
# that the event came back meanwhile.
REFUSE: Final = text(
    "INSERT INTO refused_events (business_id, event_key, payload_digest, event_id,"
    " customer_id, reason, detail, payload, batch_id) SELECT * FROM unnest("
    " CAST(:business_ids AS text[]), CAST(:event_keys AS uuid[]), CAST(:digests AS bigint[]),"
    " CAST(:event_ids AS text[]), CAST(:customer_ids AS text[]), CAST(:reasons AS text[]),"
    " CAST(:details AS text[]), CAST(:payloads AS json[]), CAST(:batch_ids AS bigint[]))"
    " ON CONFLICT (event_key, payload_digest) DO UPDATE SET reason = excluded.reason,"
    " detail = excluded.detail, batch_id = excluded.batch_id, refused_at = now(),"
    " replayed_at = NULL"
)
# A page of waiting dead letters of a business, oldest first; all filters are optional.
REFUSED: Final = text(
    "SELECT refusal_id, business_id, event_id, customer_id, reason, detail, payload, batch_id,"
    " refused_at FROM refused_events WHERE replayed_at IS NULL AND refusal_id > :after"
    " AND (CAST(:business_id AS text) IS NULL OR business_id = :business_id)"
    " AND (CAST(:reason AS text) IS NULL OR reason = :reason)"
    " AND (CAST(:event_id AS text) IS NULL OR event_id = :event_id)"
    " ORDER BY refusal_id LIMIT :page"
)
# Mark dead letters as sent through the buffer again, unless they were refused again since.
MARK_REPLAYED: Final = text(
    "UPDATE refused_events r SET replayed_at = now()"
    " FROM unnest(CAST(:refusal_ids AS bigint[]), CAST(:batch_ids AS bigint[]))"
    " AS sent (refusal_id, batch_id)"
    " WHERE r.refusal_id = sent.refusal_id AND r.batch_id = sent.batch_id"
)

# --- retention ----------------------------------------------------------------------------------

# One maintenance run at a time.
TRY_MAINTENANCE: Final = text("SELECT pg_try_advisory_xact_lock(1735747693, 0)")
# The day by the clock of the database.
TODAY: Final = text("SELECT (now() AT TIME ZONE 'UTC')::date")
# The daily partitions there are.
PARTITIONS: Final = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'usage_events'::regclass ORDER BY c.relname"
)
# Whether the catch-all partition holds rows of a day, which then stay there.
DEFAULT_HOLDS: Final = text(
    "SELECT EXISTS (SELECT 1 FROM usage_events_default"
    " WHERE posted_at >= CAST(:first AS date) AND posted_at < CAST(:last AS date))"
)
# Old rows of the catch-all partition.
CLEAR_DEFAULT: Final = text(
    "DELETE FROM usage_events_default WHERE posted_at < CAST(:first AS date)"
)

# --- counts -------------------------------------------------------------------------------------

# Where all events ended, over all batches.
TOTALS: Final = text(
    "SELECT coalesce(sum(posted_count), 0) AS posted, coalesce(sum(duplicate_count), 0) AS"
    " duplicate, coalesce(sum(refused_count), 0) AS refused,"
    " coalesce(sum(unmetered_count), 0) AS unmetered,"
    " coalesce(sum(replayed_count), 0) AS replayed FROM usage_batches"
)
# What the ledger has seen of every shard.
CURSORS: Final = text(
    "SELECT shard, epoch, last_stream_id, accepted_count, settled_count, lost_count, rewound_count"
    " FROM drain_cursors ORDER BY shard"
)
