"""All SQL of the clean-up, a sentence each: a page at a time, the oldest rows first."""

from typing import Final

from sqlalchemy import text

# --- webhooks: their ids sort by time -------------------------------------------------------------

# The oldest webhooks before an id. SKIP LOCKED: one that is being delivered stays for now.
OLD_WEBHOOKS: Final = text("""
    SELECT webhook_event_id FROM webhook_events WHERE webhook_event_id < :before
    ORDER BY webhook_event_id LIMIT :page FOR UPDATE SKIP LOCKED
""")
# Delete their deliveries, each with its attempts.
DELETE_DELIVERIES: Final = text("""
    DELETE FROM webhook_deliveries WHERE webhook_event_id = ANY(:webhook_event_ids)
""")
# Delete them. Their number per wallet is kept, because alert numbers have no gap.
DELETE_WEBHOOKS: Final = text("""
    WITH gone AS (
        DELETE FROM webhook_events WHERE webhook_event_id = ANY(:webhook_event_ids)
        RETURNING wallet_id)
    INSERT INTO pruned_alerts AS p (wallet_id, alert_count)
    SELECT wallet_id, count(*) FROM gone
    WHERE wallet_id IS NOT NULL GROUP BY wallet_id ORDER BY wallet_id
    ON CONFLICT (wallet_id)
        DO UPDATE SET alert_count = p.alert_count + excluded.alert_count
""")

# --- providers' events ----------------------------------------------------------------------------

# Blank the bodies of provider events that were processed long ago and wait for nobody. The row
# stays: a repetition is recognised by it.
BLANK_BODIES: Final = text("""
    UPDATE provider_events SET body = '' WHERE event_number IN (
        SELECT event_number FROM provider_events
        WHERE body <> '' AND status IN ('applied', 'ignored')
            AND processed_at < now() - make_interval(days => :days)
        ORDER BY event_number LIMIT :page FOR UPDATE SKIP LOCKED)
""")

# --- refused events -------------------------------------------------------------------------------

# Delete refused events that were replayed long ago and not refused once more.
DELETE_REFUSED: Final = text("""
    DELETE FROM refused_events WHERE refusal_id IN (
        SELECT refusal_id FROM refused_events
        WHERE replayed_at < now() - make_interval(days => :days)
        ORDER BY refusal_id LIMIT :page FOR UPDATE SKIP LOCKED)
""")
