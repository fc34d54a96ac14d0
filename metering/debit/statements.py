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
# Keys and what they stand for, as arrays: no temporary table, which a pooler would leave to others.
_CLAIMED: Final = (
    "unnest(CAST(:event_keys AS uuid[]), CAST(:digests AS bigint[]))"
    " AS s (event_key, payload_digest)"
)
# Take the keys that are free, in sorted order, so that two shards never wait for each other in a
# circle: with duplicates in flight, unsorted inserts deadlock and lose two orders of magnitude.
CLAIM_KEYS: Final = text(
    "INSERT INTO usage_event_keys (event_key, payload_digest, batch_id)"
    f" SELECT event_key, payload_digest, :batch_id FROM {_CLAIMED} ORDER BY event_key"
    " ON CONFLICT (event_key) DO NOTHING"
)
# The keys that an earlier batch had taken, and whether with the same payload.
TAKEN_KEYS: Final = text(
    "SELECT replace(s.event_key::text, '-', '') AS event_key,"
    f" k.payload_digest = s.payload_digest AS same FROM {_CLAIMED}"
    " JOIN usage_event_keys k USING (event_key) WHERE k.batch_id <> :batch_id"
)
# Which of some keys are taken, by what payload, in which batch.
CHARGED_KEYS: Final = text(
    "SELECT replace(event_key::text, '-', '') AS event_key, payload_digest, batch_id"
    " FROM usage_event_keys WHERE event_key = ANY(CAST(:event_keys AS uuid[]))"
)
# Keep one row per posted event.
COPY_EVENTS: Final[LiteralString] = (
    "COPY usage_events (business_id, event_id, customer_id, event_name, event_at, metadata,"
    " currency, cost_minor, batch_id) FROM STDIN"
)

# Note whose usage a batch holds; a batch that was split around a bad event notes its parts.
NOTE_USAGE: Final = text(
    "INSERT INTO usage_of_businesses AS u (business_id, batch_id, first_event_at, last_event_at,"
    " has_uncharged) SELECT * FROM unnest(CAST(:business_ids AS text[]),"
    " CAST(:batch_ids AS bigint[]), CAST(:firsts AS timestamptz[]),"
    " CAST(:lasts AS timestamptz[]), CAST(:uncharged AS boolean[]))"
    " ON CONFLICT (business_id, posted_at, batch_id) DO UPDATE SET"
    " first_event_at = least(u.first_event_at, excluded.first_event_at),"
    " last_event_at = greatest(u.last_event_at, excluded.last_event_at),"
    " has_uncharged = u.has_uncharged OR excluded.has_uncharged"
)

# --- where events are ---------------------------------------------------------------------------

_USAGE: Final = (
    "u.business_id, u.event_id, u.customer_id, u.event_name, u.event_at, u.metadata, u.currency,"
    " u.cost_minor, u.batch_id, u.posted_at"
)
# Which batch posted an event, and when.
BATCH_OF_KEY: Final = text(
    "SELECT k.batch_id, b.created_at AS posted_at FROM usage_event_keys k"
    " JOIN usage_batches b USING (batch_id) WHERE k.event_key = CAST(:event_key AS uuid)"
)
# One event of a batch: in the partition of the batch's time, in the blocks of its rows.
USAGE_EVENT: Final = text(
    f"SELECT {_USAGE} FROM usage_events u WHERE u.posted_at = :posted_at"
    " AND u.batch_id = :batch_id AND u.business_id = :business_id AND u.event_id = :event_id"
)
_REFUSED: Final = (
    "r.refusal_id, r.business_id, r.event_id, r.customer_id, r.reason, r.detail, r.payload,"
    " r.batch_id, r.refused_at, r.replayed_at AS resolved_at,"
    " CASE WHEN r.replayed_at IS NOT NULL THEN coalesce(r.resolution, 'replayed') END"
    " AS resolution, r.resolution_note"
)
# One waits until it is sent again, dismissed, or mended: another event of its id was charged. A
# conflict is about just such an event.
_MENDED: Final = (
    "r.reason <> 'conflict'"
    " AND EXISTS (SELECT FROM usage_event_keys k WHERE k.event_key = r.event_key)"
)
_WAITS: Final = f"r.replayed_at IS NULL AND NOT ({_MENDED})"
# The waiting dead letter of an event, or the last that stopped waiting.
REFUSAL_OF_KEY: Final = text(
    f"SELECT {_REFUSED} FROM refused_events r"
    " WHERE r.business_id = :business_id AND r.event_key = CAST(:event_key AS uuid)"
    " ORDER BY r.replayed_at IS NULL DESC, r.refused_at DESC LIMIT 1"
)
# The entries that debited some batches, by batch and wallet.
ENTRIES_OF_BATCHES: Final = text(
    "SELECT batch_id, customer_id, currency, min(entry_id) AS entry_id FROM ledger_entries"
    " WHERE batch_id = ANY(:batch_ids) AND business_id = :business_id"
    " AND customer_id = ANY(:customer_ids) GROUP BY batch_id, customer_id, currency"
)
# When a batch began: its rows of usage carry the same moment.
BATCH_TIME: Final = text("SELECT created_at FROM usage_batches WHERE batch_id = :batch_id")
# The entries of a wallet that one batch made.
ENTRIES_OF_BATCH: Final = text(
    "SELECT entry_id FROM ledger_entries WHERE batch_id = :batch_id AND wallet_id = :wallet_id"
    " ORDER BY version"
)
# The usage that one batch charged to one wallet, newest first, after a place in that order.
USAGE_OF_ENTRY: Final = text(
    f"SELECT {_USAGE} FROM usage_events u WHERE u.posted_at = :posted_at"
    " AND u.batch_id = :batch_id AND u.business_id = :business_id"
    " AND u.customer_id = :customer_id AND u.currency = :currency"
    " AND (CAST(:after_at AS timestamptz) IS NULL"
    " OR (u.event_at, u.event_id) < (CAST(:after_at AS timestamptz), :after_id))"
    " ORDER BY u.event_at DESC, u.event_id DESC LIMIT :page"
)
_IN_REACH: Final = (
    " AND (CAST(:before AS timestamptz) IS NULL OR u.posted_at <= :before)"
    " AND (CAST(:start AS timestamptz) IS NULL OR u.last_event_at >= :start)"
    " AND (CAST(:end AS timestamptz) IS NULL OR u.first_event_at <= :end)"
)
# Batches that hold usage of a business, newest first, after a place in that order.
BATCHES_OF_BUSINESS: Final = text(
    "SELECT u.batch_id, u.posted_at FROM usage_of_businesses u"
    f" WHERE u.business_id = :business_id {_IN_REACH}"
    " AND (CAST(:after_at AS timestamptz) IS NULL"
    " OR (u.posted_at, u.batch_id) < (:after_at, :after_batch))"
    " AND (NOT :uncharged OR u.has_uncharged)"
    " ORDER BY u.posted_at DESC, u.batch_id DESC LIMIT :page"
)
# Batches that debited a wallet, newest first, before a version. An entry is written within a
# minute of its batch's beginning: newer ones are passed over by what they say themselves.
BATCHES_OF_WALLET: Final = text(
    "SELECT e.version, u.batch_id, u.posted_at FROM ledger_entries e"
    " JOIN usage_batches b ON b.batch_id = e.batch_id"
    " JOIN usage_of_businesses u ON u.business_id = e.business_id AND u.posted_at = b.created_at"
    f" AND u.batch_id = b.batch_id WHERE e.wallet_id = :wallet_id AND e.kind = 'usage' {_IN_REACH}"
    " AND (CAST(:before AS timestamptz) IS NULL"
    " OR e.created_at <= CAST(:before AS timestamptz) + interval '1 minute')"
    " AND e.version < :before_version ORDER BY e.version DESC LIMIT :page"
)
# Usage of some batches, newest first, after a place in that order. The bounds of time choose the
# partitions.
USAGE_OF_BATCHES: Final = text(
    f"SELECT {_USAGE} FROM usage_events u WHERE u.posted_at BETWEEN :oldest AND :newest"
    " AND u.batch_id = ANY(:batch_ids) AND u.business_id = :business_id"
    " AND (CAST(:customer_id AS text) IS NULL OR u.customer_id = :customer_id)"
    " AND (CAST(:event_name AS text) IS NULL OR u.event_name = :event_name)"
    " AND (CAST(:start AS timestamptz) IS NULL OR u.event_at >= :start)"
    " AND (CAST(:end AS timestamptz) IS NULL OR u.event_at <= :end)"
    " AND (CAST(:after_at AS timestamptz) IS NULL OR (u.posted_at, u.batch_id, u.event_at,"
    " u.event_id) < (:after_at, :after_batch, CAST(:after_event_at AS timestamptz),"
    " :after_event_id))"
    " ORDER BY u.posted_at DESC, u.batch_id DESC, u.event_at DESC, u.event_id DESC LIMIT :page"
)

# --- dead letters -------------------------------------------------------------------------------

# Which of some refused events are here already, and whether they wait or were resolved. Locked, so
# that a replay that marks them afterwards sees that they were refused once more.
KNOWN_REFUSALS: Final = text(
    "SELECT replace(event_key::text, '-', '') AS event_key, payload_digest,"
    " replayed_at IS NULL AS is_waiting, resolution IS NOT NULL AS is_resolved"
    " FROM refused_events WHERE event_key = ANY(CAST(:event_keys AS uuid[])) FOR UPDATE"
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
    " detail = excluded.detail, payload = excluded.payload, batch_id = excluded.batch_id,"
    " refused_at = now(), replayed_at = NULL"
)
_SELECTED: Final = (
    " AND (CAST(:customer_id AS text) IS NULL OR r.customer_id = :customer_id)"
    " AND (CAST(:reason AS text) IS NULL OR r.reason = :reason)"
    " AND (CAST(:event_id AS text) IS NULL OR r.event_id = :event_id)"
)
_NEWEST: Final = (
    f" {_SELECTED} AND (CAST(:after_at AS timestamptz) IS NULL"
    " OR (r.refused_at, r.refusal_id) < (:after_at, :after_id))"
    " ORDER BY r.refused_at DESC, r.refusal_id DESC LIMIT :page OFFSET :offset"
)
# Waiting dead letters of a business, newest first, after a place in that order.
REFUSED_NEWEST: Final = text(
    f"SELECT {_REFUSED} FROM refused_events r"
    f" WHERE r.business_id = :business_id AND {_WAITS} {_NEWEST}"
)
# The same of those that wait no more.
RESOLVED_NEWEST: Final = text(
    f"SELECT {_REFUSED} FROM refused_events r"
    f" WHERE r.business_id = :business_id AND r.replayed_at IS NOT NULL {_NEWEST}"
)
# One dead letter of this business.
REFUSAL: Final = text(
    f"SELECT {_REFUSED} FROM refused_events r"
    " WHERE r.business_id = :business_id AND r.refusal_id = :refusal_id"
)
# When a dead letter of this business was refused.
REFUSED_AT: Final = text(
    "SELECT refused_at FROM refused_events"
    " WHERE business_id = :business_id AND refusal_id = :refusal_id"
)
# A page of waiting dead letters of a business or of all, oldest first; all filters are optional.
REFUSED: Final = text(
    f"SELECT {_REFUSED} FROM refused_events r WHERE {_WAITS} AND r.refusal_id > :after"
    " AND (CAST(:business_id AS text) IS NULL OR r.business_id = :business_id)"
    f" {_SELECTED} ORDER BY r.refusal_id LIMIT :page"
)
# The same of those that wait no more, newest first.
RESOLVED: Final = text(
    f"SELECT {_REFUSED} FROM refused_events r WHERE r.replayed_at IS NOT NULL"
    " AND (CAST(:business_id AS text) IS NULL OR r.business_id = :business_id)"
    f" {_SELECTED} ORDER BY r.refusal_id DESC LIMIT :page"
)
# Dismiss dead letters that wait: those named, or all that the filters select.
DISMISS: Final = text(
    "UPDATE refused_events r SET replayed_at = now(), resolution = 'dismissed',"
    f" resolution_note = :note WHERE r.business_id = :business_id AND {_WAITS}"
    " AND (CAST(:refusal_ids AS bigint[]) IS NULL OR r.refusal_id = ANY(:refusal_ids))"
    f" {_SELECTED}"
)
# A page of those that wait by their mark, of all businesses.
WAITING_PAGE: Final = text(
    "SELECT business_id, refusal_id FROM refused_events WHERE replayed_at IS NULL"
    " AND (business_id, refusal_id) > (:business_id, :refusal_id)"
    " ORDER BY business_id, refusal_id LIMIT :page"
)
# Mark those that another event of their id has mended. The list leaves them out before that.
MARK_MENDED: Final = text(
    "UPDATE refused_events r SET replayed_at = now(), resolution = 'mended'"
    f" WHERE r.refusal_id = ANY(:refusal_ids) AND r.replayed_at IS NULL AND {_MENDED}"
)
# Mark dead letters as sent through the buffer again, unless they were refused again since.
MARK_REPLAYED: Final = text(
    "UPDATE refused_events r SET replayed_at = now()"
    " FROM unnest(CAST(:refusal_ids AS bigint[]), CAST(:batch_ids AS bigint[]))"
    " AS sent (refusal_id, batch_id)"
    " WHERE r.refusal_id = sent.refusal_id AND r.batch_id = sent.batch_id"
)

# --- usage that nothing prices -------------------------------------------------------------------

_KINDS: Final = (
    "unnest(CAST(:business_ids AS text[]), CAST(:reasons AS text[]),"
    " CAST(:event_names AS text[]), CAST(:meter_ids AS text[]), CAST(:versions AS bigint[]))"
    " AS n (business_id, reason, event_name, meter_id, version)"
)
# Kinds that were never told, or were told a day ago of another rate card. Without a lock: in
# nearly every batch all are known.
UNTOLD: Final = text(
    f"SELECT n.business_id, n.reason, n.event_name, n.meter_id FROM {_KINDS}"
    " LEFT JOIN unpriced_usage u USING (business_id, reason, event_name, meter_id)"
    " WHERE u.told_at IS NULL"
    " OR u.rate_card_version <> n.version AND u.told_at < now() - interval '1 day'"
    " ORDER BY n.business_id, n.reason, n.event_name, n.meter_id LIMIT :page"
)
# Note that kinds are told now, unless another shard has just done so, or there are too many of the
# business. In order, so that two shards never wait for each other in a circle.
NOTE_TOLD: Final = text(
    "INSERT INTO unpriced_usage AS u (business_id, reason, event_name, meter_id,"
    " rate_card_version) SELECT n.business_id, n.reason, n.event_name, n.meter_id, n.version"
    f" FROM {_KINDS} WHERE (SELECT count(*) FROM unpriced_usage k"
    " WHERE k.business_id = n.business_id) < :kinds_max"
    " ORDER BY n.business_id, n.reason, n.event_name, n.meter_id"
    " ON CONFLICT (business_id, reason, event_name, meter_id) DO UPDATE SET"
    " rate_card_version = excluded.rate_card_version, told_at = now()"
    " WHERE u.told_at < now() - interval '1 day'"
    " RETURNING business_id, reason, event_name, meter_id, told_at"
)
# Forget kinds that were told long ago: what goes on is told once more.
FORGET_TOLD: Final = text("DELETE FROM unpriced_usage WHERE told_at < CAST(:first AS date)")

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

# Let the block range index of what was added lately know where batches lie: until then, whoever
# looks for one reads all of it. The partitions of two days, and the catch-all.
SUMMARIZE: Final = text(
    "SELECT coalesce(sum(brin_summarize_new_values(i.inhrelid::regclass)), 0)"
    " FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhrelid"
    " JOIN pg_class c ON c.oid = x.indrelid"
    " WHERE i.inhparent = 'usage_events_of_batch'::regclass AND (c.relname = 'usage_events_default'"
    " OR c.relname = ANY(CAST(:names AS text[])))"
)
# Notes of whose usage old batches held: their rows are gone.
CLEAR_NOTES: Final = text("DELETE FROM usage_of_businesses WHERE posted_at < CAST(:first AS date)")

# --- counts -------------------------------------------------------------------------------------

# The events that wait as dead letters, by reason, over all businesses.
REFUSED_WAITING: Final = text(
    "SELECT reason, count(*) AS events FROM refused_events WHERE replayed_at IS NULL"
    " GROUP BY reason ORDER BY reason"
)
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
