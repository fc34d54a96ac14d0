"""All SQL of the webhooks, a sentence each."""

from typing import Final

from sqlalchemy import text

# --- outbox ---------------------------------------------------------------------------------------

# Write webhooks to the outbox.
INSERT_EVENTS: Final = text("""
    INSERT INTO webhook_events
        (webhook_event_id, business_id, type, wallet_id, sequence, data, occurred_at)
    SELECT n.webhook_event_id, n.business_id, n.type, n.wallet_id, n.sequence,
        CAST(n.data AS json), :occurred_at
    FROM unnest(CAST(:webhook_event_ids AS text[]), CAST(:business_ids AS text[]),
        CAST(:types AS text[]), CAST(:wallet_ids AS text[]), CAST(:sequences AS bigint[]),
        CAST(:data AS text[]))
        AS n (webhook_event_id, business_id, type, wallet_id, sequence, data)
""")
# One delivery for each enabled endpoint of the same business that wants the type. SKIP LOCKED
# passes over an endpoint that is being deleted: the posting must not wait for it or fail with it.
INSERT_DELIVERIES: Final = text("""
    INSERT INTO webhook_deliveries (webhook_event_id, endpoint_id, due_at)
    SELECT n.webhook_event_id, e.endpoint_id, now()
    FROM unnest(CAST(:webhook_event_ids AS text[]), CAST(:business_ids AS text[]),
        CAST(:types AS text[])) AS n (webhook_event_id, business_id, type)
    JOIN webhook_endpoints e ON e.business_id = n.business_id
    WHERE e.disabled_at IS NULL AND (e.filter_types IS NULL OR n.type = ANY(e.filter_types))
    FOR KEY SHARE OF e SKIP LOCKED
""")

# A delivery for one endpoint alone.
INSERT_DELIVERY: Final = text("""
    INSERT INTO webhook_deliveries (webhook_event_id, endpoint_id, due_at)
    VALUES (:webhook_event_id, :endpoint_id, now())
""")

# --- endpoints ------------------------------------------------------------------------------------

_ENDPOINT: Final = """endpoint_id, business_id, url, description, filter_types, headers, metadata,
    disabled_at, disabled_reason, failures_in_row, failing_since, created_at, updated_at"""

# An endpoint, unless the business has as many as it may have.
INSERT_ENDPOINT: Final = text("""
    INSERT INTO webhook_endpoints (endpoint_id, business_id, url, description, secret,
        filter_types, headers, metadata, idempotency_key, request_digest)
    SELECT :endpoint_id, :business_id, :url, :description, :secret,
        CAST(:filter_types AS text[]), CAST(:headers AS json), CAST(:metadata AS json),
        CAST(:idempotency_key AS text), CAST(:digest AS bytea)
    WHERE (SELECT count(*) FROM webhook_endpoints WHERE business_id = :business_id) < :endpoints_max
""")
# One endpoint of this business.
ENDPOINT: Final = text(f"""
    SELECT {_ENDPOINT} FROM webhook_endpoints
    WHERE business_id = :business_id AND endpoint_id = :endpoint_id
""")
# FOR NO KEY UPDATE: one change of an endpoint at a time, while new deliveries still go in.
LOCK_ENDPOINT: Final = text(f"""
    SELECT {_ENDPOINT} FROM webhook_endpoints
    WHERE business_id = :business_id AND endpoint_id = :endpoint_id FOR NO KEY UPDATE
""")
# The endpoint that the first request with an idempotency key created.
ENDPOINT_BY_KEY: Final = text("""
    SELECT endpoint_id, request_digest FROM webhook_endpoints
    WHERE business_id = :business_id AND idempotency_key = :idempotency_key
""")
# A page of the endpoints of this business, oldest first.
ENDPOINTS: Final = text(f"""
    SELECT {_ENDPOINT} FROM webhook_endpoints
    WHERE business_id = :business_id AND endpoint_id > :after
    ORDER BY endpoint_id LIMIT :page
""")
# The secret that signs.
ENDPOINT_SECRET: Final = text("""
    SELECT secret FROM webhook_endpoints
    WHERE business_id = :business_id AND endpoint_id = :endpoint_id
""")
# Replace the fields of an endpoint that its owner sets.
UPDATE_ENDPOINT: Final = text(f"""
    UPDATE webhook_endpoints SET url = :url, description = :description,
        filter_types = CAST(:filter_types AS text[]), headers = CAST(:headers AS json),
        metadata = CAST(:metadata AS json), updated_at = now()
    WHERE business_id = :business_id AND endpoint_id = :endpoint_id
    RETURNING {_ENDPOINT}
""")
# Stop sending. Pending deliveries wait. The first reason stays.
DISABLE_ENDPOINT: Final = text(f"""
    UPDATE webhook_endpoints SET disabled_at = coalesce(disabled_at, now()),
        disabled_reason = coalesce(disabled_reason, :reason), updated_at = now()
    WHERE business_id = :business_id AND endpoint_id = :endpoint_id
    RETURNING {_ENDPOINT}
""")
# Send again, and forget the failures. Pending deliveries go out.
ENABLE_ENDPOINT: Final = text(f"""
    UPDATE webhook_endpoints SET disabled_at = NULL, disabled_reason = NULL, failures_in_row = 0,
        failing_since = NULL, updated_at = now()
    WHERE business_id = :business_id AND endpoint_id = :endpoint_id
    RETURNING {_ENDPOINT}
""")
# Delete an endpoint, with its deliveries and their attempts.
DELETE_ENDPOINT: Final = text("""
    DELETE FROM webhook_endpoints
    WHERE business_id = :business_id AND endpoint_id = :endpoint_id
""")
# Set a new secret. The old one signs too, for a while.
ROTATE_SECRET: Final = text("""
    UPDATE webhook_endpoints SET previous_secret = secret, secret = :secret,
        previous_secret_until = now() + make_interval(secs => CAST(:overlap_s AS float8)),
        updated_at = now()
    WHERE business_id = :business_id AND endpoint_id = :endpoint_id
""")

# --- delivery -------------------------------------------------------------------------------------

# Endpoints with pending deliveries, found by hops along their index. The cost grows with these
# endpoints alone, not with the deliveries.
_BUSY: Final = """
    busy (endpoint_id) AS (
        (SELECT endpoint_id FROM webhook_deliveries WHERE status = 'pending'
            ORDER BY endpoint_id LIMIT 1)
        UNION ALL
        SELECT (SELECT d.endpoint_id FROM webhook_deliveries d
            WHERE d.status = 'pending' AND d.endpoint_id > busy.endpoint_id
            ORDER BY d.endpoint_id LIMIT 1)
        FROM busy WHERE busy.endpoint_id IS NOT NULL
    )"""
# How many deliveries each endpoint may take now: its limit, less those in flight in any process. A
# delivery is in flight if it was claimed, has its lease and has no recorded attempt. A failing
# endpoint gets one at a time, so that it holds one place only.
_ROOM: Final = """
    room AS MATERIALIZED (
        SELECT e.endpoint_id, e.failures_in_row >= :failing_from AS failing,
            greatest(0, CASE WHEN e.failures_in_row >= :failing_from THEN 1
                ELSE CAST(:per_endpoint_max AS bigint) END - (
                SELECT count(*) FROM webhook_deliveries f
                WHERE f.endpoint_id = e.endpoint_id AND f.status = 'pending' AND f.attempts > 0
                    AND f.due_at > now()
                    AND f.due_at <= now() + make_interval(secs => CAST(:lease_s AS float8))
                    AND NOT EXISTS (SELECT FROM webhook_attempts a
                        WHERE a.webhook_event_id = f.webhook_event_id
                            AND a.endpoint_id = f.endpoint_id AND a.attempt = f.attempts)
            )) AS free
        FROM busy JOIN webhook_endpoints e USING (endpoint_id)
        WHERE e.disabled_at IS NULL AND (
            SELECT d.due_at FROM webhook_deliveries d
            WHERE d.endpoint_id = e.endpoint_id AND d.status = 'pending'
            ORDER BY d.due_at LIMIT 1) <= now()
    )"""
# The next deliveries of each endpoint, in turns. If many endpoints wait, each gets its share of the
# limit.
_WAITING: Final = """
    room CROSS JOIN LATERAL (
        SELECT first.*, row_number() OVER (ORDER BY first.due_at, first.webhook_event_id) AS turn
        FROM (SELECT d.webhook_event_id, d.due_at FROM webhook_deliveries d
            WHERE d.endpoint_id = room.endpoint_id AND d.status = 'pending' AND d.due_at <= now()
            ORDER BY d.due_at, d.webhook_event_id
            LIMIT least(room.free, 1 + :claim_limit / (SELECT count(*) FROM room))) AS first
    ) AS waiting"""

# How many deliveries could be claimed now, up to a limit.
COUNT_DUE: Final = text(f"""
    WITH RECURSIVE {_BUSY}, {_ROOM}
    SELECT count(*) FROM (SELECT FROM {_WAITING} LIMIT :claim_limit) AS due
""")
# Claim deliveries that are due: number the attempt and move `due_at` past the lease, so that they
# are due again if the claimer dies. Endpoints take turns, the longest waiting first; failing ones
# come last and get no more than their share. SKIP LOCKED: another claimer has the row.
CLAIM: Final = text(f"""
    WITH RECURSIVE {_BUSY}, {_ROOM}, queue AS MATERIALIZED (
        SELECT waiting.*, room.endpoint_id, room.failing,
            row_number() OVER (PARTITION BY room.failing ORDER BY waiting.due_at) AS place
        FROM {_WAITING}
    ), chosen AS MATERIALIZED (
        SELECT * FROM queue WHERE NOT failing OR place <= :failing_limit
        ORDER BY failing, turn, due_at LIMIT :claim_limit
    ), taken AS MATERIALIZED (
        SELECT d.webhook_event_id, d.endpoint_id, chosen.failing
        FROM webhook_deliveries d JOIN chosen USING (webhook_event_id, endpoint_id)
        WHERE d.status = 'pending' AND d.due_at <= now()
        FOR NO KEY UPDATE OF d SKIP LOCKED
    )
    UPDATE webhook_deliveries d SET attempts = d.attempts + 1,
        due_at = now() + make_interval(secs => CAST(:lease_s AS float8))
    FROM taken
    JOIN webhook_events v ON v.webhook_event_id = taken.webhook_event_id
    JOIN webhook_endpoints e ON e.endpoint_id = taken.endpoint_id
    WHERE d.webhook_event_id = taken.webhook_event_id AND d.endpoint_id = taken.endpoint_id
    RETURNING d.webhook_event_id, d.endpoint_id, d.attempts AS attempt, taken.failing,
        v.business_id, v.type, v.occurred_at, CAST(v.data AS text) AS data, e.url, e.headers,
        e.secret, CASE WHEN e.previous_secret_until > now() THEN e.previous_secret END
            AS previous_secret
""")
# Lock the endpoints of some results in the order of their ids, so that two recorders never
# deadlock, and an endpoint is not deleted between the statements.
LOCK_ENDPOINTS: Final = text("""
    SELECT endpoint_id FROM webhook_endpoints WHERE endpoint_id = ANY(:endpoint_ids)
    ORDER BY endpoint_id FOR NO KEY UPDATE
""")
# How many attempts before each of these are recorded in the same round.
TRIED_BEFORE: Final = text("""
    SELECT r.webhook_event_id, r.endpoint_id, count(*) AS tried
    FROM unnest(CAST(:webhook_event_ids AS text[]), CAST(:endpoint_ids AS text[]),
        CAST(:attempts AS integer[])) AS r (webhook_event_id, endpoint_id, attempt)
    JOIN webhook_attempts a ON a.webhook_event_id = r.webhook_event_id
        AND a.endpoint_id = r.endpoint_id AND a.attempt < r.attempt
        AND (a.attempt - 1) / :attempts_per_round = (r.attempt - 1) / :attempts_per_round
    GROUP BY r.webhook_event_id, r.endpoint_id
""")
# Record attempts, but not those of an endpoint that was deleted meanwhile.
INSERT_ATTEMPTS: Final = text("""
    INSERT INTO webhook_attempts (webhook_event_id, endpoint_id, attempt, attempted_at,
        duration_ms, status_code, error)
    SELECT r.webhook_event_id, r.endpoint_id, r.attempt, r.attempted_at, r.duration_ms,
        r.status_code, r.error
    FROM unnest(CAST(:webhook_event_ids AS text[]), CAST(:endpoint_ids AS text[]),
        CAST(:attempts AS integer[]), CAST(:attempted_at AS timestamptz[]),
        CAST(:durations_ms AS integer[]), CAST(:status_codes AS integer[]),
        CAST(:errors AS text[])) AS r (webhook_event_id, endpoint_id, attempt, attempted_at,
        duration_ms, status_code, error)
    JOIN webhook_deliveries d USING (webhook_event_id, endpoint_id)
    ON CONFLICT DO NOTHING
""")
# Record the outcomes of attempts. A failure that arrives after the lease, when another attempt has
# begun, decides nothing; a success always counts.
RECORD_OUTCOMES: Final = text("""
    UPDATE webhook_deliveries d SET status = r.status,
        due_at = CASE WHEN r.status = 'pending' THEN now() + make_interval(secs => r.delay_s)
            ELSE d.due_at END,
        delivered_at = CASE WHEN r.status = 'delivered' THEN now() END
    FROM unnest(CAST(:webhook_event_ids AS text[]), CAST(:endpoint_ids AS text[]),
        CAST(:attempts AS integer[]), CAST(:statuses AS text[]), CAST(:delays_s AS float8[]))
        AS r (webhook_event_id, endpoint_id, attempt, status, delay_s)
    WHERE d.webhook_event_id = r.webhook_event_id AND d.endpoint_id = r.endpoint_id
        AND d.status = 'pending' AND (d.attempts = r.attempt OR r.status = 'delivered')
""")
# Count the failures of endpoints. One success clears them. 410 Gone disables an endpoint, and so do
# many failures in a row over a long time.
JUDGE_ENDPOINTS: Final = text("""
    UPDATE webhook_endpoints e SET
        failures_in_row = v.failures_in_row, failing_since = v.failing_since,
        disabled_at = CASE WHEN v.reason IS NOT NULL THEN coalesce(e.disabled_at, now())
            ELSE e.disabled_at END,
        disabled_reason = coalesce(e.disabled_reason, v.reason)
    FROM (
        SELECT t.*, CASE
            WHEN t.gone THEN 'the receiver answered 410 Gone'
            WHEN t.failures_in_row >= :disable_after AND t.failing_since
                    <= now() - make_interval(secs => CAST(:disable_span_s AS float8))
                THEN format('%s attempts in a row failed', t.failures_in_row) END AS reason
        FROM (
            SELECT e.endpoint_id, r.gone,
                CASE WHEN r.delivered > 0 THEN 0 ELSE e.failures_in_row + r.failed END
                    AS failures_in_row,
                CASE WHEN r.delivered = 0 THEN coalesce(e.failing_since, now()) END AS failing_since
            FROM unnest(CAST(:endpoint_ids AS text[]), CAST(:delivered AS integer[]),
                CAST(:failed AS integer[]), CAST(:gone AS boolean[]))
                AS r (endpoint_id, delivered, failed, gone)
            JOIN webhook_endpoints e USING (endpoint_id)
            WHERE r.failed > 0 OR e.failures_in_row > 0
        ) AS t
    ) AS v
    WHERE e.endpoint_id = v.endpoint_id
    RETURNING e.endpoint_id, e.business_id, e.disabled_reason,
        e.disabled_at IS NOT DISTINCT FROM now() AS stopped
""")

# --- lists ----------------------------------------------------------------------------------------

# Tell whether the business has such an event.
EVENT_EXISTS: Final = text("""
    SELECT 1 FROM webhook_events
    WHERE business_id = :business_id AND webhook_event_id = :webhook_event_id
""")
_STATES: Final = {
    "all": "true",
    "pending": "d.status = 'pending'",
    "failing": "d.status = 'pending' AND d.attempts % :attempts_per_round > 0",
    "dead": "d.status = 'dead'",
    "delivered": "d.status = 'delivered'",
    "undelivered": "d.status IN ('pending', 'dead')",
}
# A page of deliveries, newest event first, with the last attempt of each. Each state has its own
# statement, so that it can use the index of that state. Of each endpoint no more is read than the
# page reaches.
DELIVERIES: Final = {
    state: text(f"""
    SELECT d.webhook_event_id, e.endpoint_id, e.url, v.type, v.occurred_at, d.status,
        d.attempts % :attempts_per_round AS attempts,
        CASE WHEN d.status = 'pending' THEN d.due_at END AS next_attempt_at, d.delivered_at,
        a.attempted_at AS last_attempt_at, a.status_code AS last_status_code,
        a.error AS last_error
    FROM webhook_endpoints e
    CROSS JOIN LATERAL (
        SELECT * FROM webhook_deliveries d
        WHERE d.endpoint_id = e.endpoint_id AND {condition}
            AND (CAST(:after AS text) IS NULL OR d.webhook_event_id < :after)
        ORDER BY d.webhook_event_id DESC LIMIT :reach
    ) AS d
    JOIN webhook_events v ON v.webhook_event_id = d.webhook_event_id
    LEFT JOIN LATERAL (
        SELECT attempted_at, status_code, error FROM webhook_attempts a
        WHERE a.webhook_event_id = d.webhook_event_id AND a.endpoint_id = d.endpoint_id
        ORDER BY attempt DESC LIMIT 1
    ) AS a ON true
    WHERE e.business_id = :business_id
        AND (CAST(:endpoint_id AS text) IS NULL OR e.endpoint_id = :endpoint_id)
    ORDER BY d.webhook_event_id DESC, e.endpoint_id LIMIT :page OFFSET :offset
""")
    for state, condition in _STATES.items()
}

# Deliveries of all businesses that have not arrived: dead, pending, and pending after a failure.
UNDELIVERED: Final = text("""
    SELECT count(*) FILTER (WHERE status = 'dead') AS dead,
        count(*) FILTER (WHERE status = 'pending') AS pending,
        count(*) FILTER (WHERE status = 'pending' AND attempts % :attempts_per_round > 0) AS failing
    FROM webhook_deliveries WHERE status IN ('pending', 'dead')
""")

# --- dead letters and replay ----------------------------------------------------------------------

# A page of the dead deliveries of a business in the order of their events, with the last attempt.
DEAD_LETTERS: Final = text("""
    SELECT d.webhook_event_id, d.endpoint_id, v.type, v.occurred_at, a.attempt, a.attempted_at,
        a.status_code, a.error
    FROM webhook_endpoints e
    JOIN webhook_deliveries d USING (endpoint_id)
    JOIN webhook_events v ON v.webhook_event_id = d.webhook_event_id
    LEFT JOIN LATERAL (
        SELECT attempt, attempted_at, status_code, error FROM webhook_attempts a
        WHERE a.webhook_event_id = d.webhook_event_id AND a.endpoint_id = d.endpoint_id
        ORDER BY attempt DESC LIMIT 1
    ) AS a ON true
    WHERE e.business_id = :business_id AND d.status = 'dead'
        AND (d.webhook_event_id, d.endpoint_id) > (:after_event_id, :after_endpoint_id)
    ORDER BY d.webhook_event_id, d.endpoint_id LIMIT :page
""")

_CHOSEN_EVENTS: Final = """
    (CAST(:business_id AS text) IS NULL OR v.business_id = :business_id)
    AND (CAST(:webhook_event_id AS text) IS NULL OR v.webhook_event_id = :webhook_event_id)
    AND (CAST(:since AS timestamptz) IS NULL OR v.occurred_at >= :since)
    AND (CAST(:until AS timestamptz) IS NULL OR v.occurred_at < :until)"""

# Begin a new round of attempts for deliveries that ended or wait for a retry. Those in flight or
# due are left alone, because they go out anyway.
REPLAY: Final = text(f"""
    WITH chosen AS MATERIALIZED (
        SELECT d.webhook_event_id, d.endpoint_id
        FROM webhook_deliveries d JOIN webhook_events v USING (webhook_event_id)
        WHERE {_CHOSEN_EVENTS}
            AND (CAST(:endpoint_id AS text) IS NULL OR d.endpoint_id = :endpoint_id)
            AND (d.status <> 'pending' OR (d.due_at > now() AND EXISTS (
                SELECT FROM webhook_attempts a WHERE a.webhook_event_id = d.webhook_event_id
                    AND a.endpoint_id = d.endpoint_id AND a.attempt = d.attempts)))
        ORDER BY d.webhook_event_id, d.endpoint_id LIMIT :replay_max
        FOR NO KEY UPDATE OF d
    )
    UPDATE webhook_deliveries d SET status = 'pending', due_at = now(), delivered_at = NULL,
        attempts = (d.attempts / :attempts_per_round + 1) * :attempts_per_round
    FROM chosen
    WHERE d.webhook_event_id = chosen.webhook_event_id AND d.endpoint_id = chosen.endpoint_id
""")
# Deliveries of events that an endpoint missed: it did not exist yet, or was disabled.
REPLAY_MISSED: Final = text(f"""
    INSERT INTO webhook_deliveries (webhook_event_id, endpoint_id, due_at)
    SELECT v.webhook_event_id, e.endpoint_id, now()
    FROM webhook_endpoints e JOIN webhook_events v USING (business_id)
    WHERE e.endpoint_id = :endpoint_id AND {_CHOSEN_EVENTS}
        AND (e.filter_types IS NULL OR v.type = ANY(e.filter_types))
        AND NOT EXISTS (SELECT FROM webhook_deliveries d
            WHERE d.webhook_event_id = v.webhook_event_id AND d.endpoint_id = e.endpoint_id)
    ORDER BY v.webhook_event_id LIMIT :replay_max
    ON CONFLICT DO NOTHING
""")
