"""All SQL of batches, event keys, kept usage and new dead letters, a sentence each."""

from typing import Final, LiteralString

from sqlalchemy import text

from metering import locks
from metering.buffer.chunk import ROW_COLUMNS

# --- a batch ------------------------------------------------------------------------------------

# One drain at a time settles batches of a shard.
TRY_SHARD: Final = text(f"SELECT pg_try_advisory_xact_lock({locks.DRAIN}, :shard)")
# One run at a time prepares batches of a shard. A transaction that does nothing else holds this
# lock over all batches of the run.
TRY_TURN: Final = text(f"SELECT pg_try_advisory_xact_lock({locks.PREPARE}, :shard)")
_CURSOR: Final = """shard, epoch, last_stream_id, accepted_count, settled_count, lost_count,
    rewound_count"""
# How far this shard's stream has been settled in this epoch.
CURSOR: Final = text(f"""
    SELECT {_CURSOR} FROM drain_cursors WHERE shard = :shard AND epoch = :epoch
""")
# The cursors of all shards and epochs.
CURSORS: Final = text(f"SELECT {_CURSOR} FROM drain_cursors ORDER BY shard")
# Reserve a number for a batch: its rows are written with it ahead of the transaction.
NEXT_BATCH: Final = text("SELECT nextval(pg_get_serial_sequence('usage_batches', 'batch_id'))")
# Begin a batch. FINISH_BATCH writes its counts.
BEGIN_BATCH: Final = text("""
    INSERT INTO usage_batches (batch_id, shard, epoch, first_stream_id, last_stream_id,
        posted_count, duplicate_count, refused_count, unmetered_count, replayed_count)
    OVERRIDING SYSTEM VALUE
    VALUES (:batch_id, :shard, :epoch, :first_stream_id, :last_stream_id, 0, 0, 0, 0, 0)
""")
# Write where the events of the batch ended.
FINISH_BATCH: Final = text("""
    UPDATE usage_batches SET posted_count = :posted, duplicate_count = :duplicate,
        refused_count = :refused, unmetered_count = :unmetered, replayed_count = :replayed
    WHERE batch_id = :batch_id
""")
# Move the shard's cursor past this batch; the caller holds the shard's lock.
ADVANCE_CURSOR: Final = text(f"""
    INSERT INTO drain_cursors ({_CURSOR})
    VALUES (:shard, :epoch, :last_stream_id, :accepted_count, :settled_count, :lost_count,
        :rewound_count)
    ON CONFLICT (shard, epoch) DO UPDATE SET
        last_stream_id = excluded.last_stream_id, accepted_count = excluded.accepted_count,
        settled_count = excluded.settled_count, lost_count = excluded.lost_count,
        rewound_count = excluded.rewound_count, updated_at = now()
""")

# --- keys ---------------------------------------------------------------------------------------

# Take all keys or none, which suits most batches. The lines are sorted; CLAIM_KEYS says why.
COPY_KEYS: Final[LiteralString] = (
    "COPY usage_event_keys (event_key, payload_digest, batch_id) FROM STDIN"
)
# Keys and digests as arrays, because a pooler would leave a temporary table to other sessions.
_CLAIMED: Final = """unnest(CAST(:event_keys AS uuid[]), CAST(:digests AS bigint[]))
    AS s (event_key, payload_digest)"""
# Take the keys that are free, in sorted order, so that two shards never wait for each other in a
# circle. With duplicates in flight, unsorted inserts deadlock and are a hundred times slower.
CLAIM_KEYS: Final = text(f"""
    INSERT INTO usage_event_keys (event_key, payload_digest, batch_id)
    SELECT event_key, payload_digest, :batch_id FROM {_CLAIMED} ORDER BY event_key
    ON CONFLICT (event_key) DO NOTHING
""")
# The keys that an earlier batch took, and whether its digest is the same.
TAKEN_KEYS: Final = text(f"""
    SELECT replace(s.event_key::text, '-', '') AS event_key,
        k.payload_digest = s.payload_digest AS same
    FROM {_CLAIMED} JOIN usage_event_keys k USING (event_key) WHERE k.batch_id <> :batch_id
""")
# Those of some keys that are taken, with their digest and batch.
CHARGED_KEYS: Final = text("""
    SELECT replace(event_key::text, '-', '') AS event_key, payload_digest, batch_id
    FROM usage_event_keys WHERE event_key = ANY(CAST(:event_keys AS uuid[]))
""")
# Keep a row of each posted event. `prepare.usage_lines` writes these columns.
USAGE_COLUMNS: Final = ("business_id", *ROW_COLUMNS, "currency", "cost_minor", "batch_id")
COPY_EVENTS: Final[LiteralString] = f"COPY usage_events ({', '.join(USAGE_COLUMNS)}) FROM STDIN"
# Note which businesses have usage in a batch. A batch that was split around a bad event notes each
# part.
NOTE_USAGE: Final = text("""
    INSERT INTO usage_of_businesses AS u
        (business_id, batch_id, first_event_at, last_event_at, has_uncharged)
    SELECT * FROM unnest(CAST(:business_ids AS text[]), CAST(:batch_ids AS bigint[]),
        CAST(:firsts AS timestamptz[]), CAST(:lasts AS timestamptz[]),
        CAST(:uncharged AS boolean[]))
    ON CONFLICT (business_id, posted_at, batch_id) DO UPDATE SET
        first_event_at = least(u.first_event_at, excluded.first_event_at),
        last_event_at = greatest(u.last_event_at, excluded.last_event_at),
        has_uncharged = u.has_uncharged OR excluded.has_uncharged
""")

# --- dead letters -------------------------------------------------------------------------------

# Those of some refused events that are stored already, and whether they wait or were resolved. FOR
# UPDATE: a replay that marks them afterwards sees that they were refused once more.
STORED_REFUSALS: Final = text("""
    SELECT replace(event_key::text, '-', '') AS event_key, payload_digest,
        replayed_at IS NULL AS is_waiting, resolution IS NOT NULL AS is_resolved
    FROM refused_events WHERE event_key = ANY(CAST(:event_keys AS uuid[])) FOR UPDATE
""")
# Store refused events. One that had been replayed waits again; its new batch tells a replay under
# way that the event came back meanwhile.
REFUSE: Final = text("""
    INSERT INTO refused_events (business_id, event_key, payload_digest, event_id, customer_id,
        reason, detail, payload, batch_id)
    SELECT * FROM unnest(CAST(:business_ids AS text[]), CAST(:event_keys AS uuid[]),
        CAST(:digests AS bigint[]), CAST(:event_ids AS text[]), CAST(:customer_ids AS text[]),
        CAST(:reasons AS text[]), CAST(:details AS text[]), CAST(:payloads AS json[]),
        CAST(:batch_ids AS bigint[]))
    ON CONFLICT (event_key, payload_digest) DO UPDATE SET reason = excluded.reason,
        detail = excluded.detail, payload = excluded.payload, batch_id = excluded.batch_id,
        refused_at = now(), replayed_at = NULL
""")

# --- usage without a price ----------------------------------------------------------------------

_KINDS: Final = """unnest(CAST(:business_ids AS text[]), CAST(:reasons AS text[]),
        CAST(:event_names AS text[]), CAST(:meter_ids AS text[]), CAST(:versions AS bigint[]))
        AS n (business_id, reason, event_name, meter_id, version)"""
# Kinds without a notice, or whose notice is a day old and from another rate card. It takes no lock,
# because nearly every batch finds none.
KINDS_DUE: Final = text(f"""
    SELECT n.business_id, n.reason, n.event_name, n.meter_id FROM {_KINDS}
    LEFT JOIN unpriced_usage u USING (business_id, reason, event_name, meter_id)
    WHERE u.told_at IS NULL
        OR u.rate_card_version <> n.version AND u.told_at < now() - interval '1 day'
    ORDER BY n.business_id, n.reason, n.event_name, n.meter_id LIMIT :page
""")
# Store that a notice of each kind is sent now, unless another shard has just sent it or the
# business has too many kinds. ORDER BY: two shards never wait for each other in a circle.
STORE_KINDS: Final = text(f"""
    INSERT INTO unpriced_usage AS u (business_id, reason, event_name, meter_id, rate_card_version)
    SELECT n.business_id, n.reason, n.event_name, n.meter_id, n.version FROM {_KINDS}
    WHERE (SELECT count(*) FROM unpriced_usage k WHERE k.business_id = n.business_id) < :kinds_max
    ORDER BY n.business_id, n.reason, n.event_name, n.meter_id
    ON CONFLICT (business_id, reason, event_name, meter_id) DO UPDATE SET
        rate_card_version = excluded.rate_card_version, told_at = now()
        WHERE u.told_at < now() - interval '1 day'
    RETURNING business_id, reason, event_name, meter_id, told_at
""")
# Delete kinds whose notice is old. A notice is sent again if the usage goes on.
DELETE_KINDS: Final = text("DELETE FROM unpriced_usage WHERE told_at < CAST(:first AS date)")
