"""All SQL of the clean-up, a sentence each: a page at a time, the oldest rows first."""

from typing import Final

from sqlalchemy import text

# --- webhooks: their ids sort by time -------------------------------------------------------------

# The oldest webhooks from before an id; whoever works on one keeps it for now.
OLD_WEBHOOKS: Final = text(
    "SELECT webhook_event_id FROM webhook_events WHERE webhook_event_id < :before"
    " ORDER BY webhook_event_id LIMIT :page FOR UPDATE SKIP LOCKED"
)
# Forget their deliveries, and with each its attempts.
DELETE_DELIVERIES: Final = text(
    "DELETE FROM webhook_deliveries WHERE webhook_event_id = ANY(:webhook_event_ids)"
)
# Forget them; how many of a wallet are gone stays known, because their numbers have no gap.
DELETE_WEBHOOKS: Final = text(
    "WITH gone AS (DELETE FROM webhook_events WHERE webhook_event_id = ANY(:webhook_event_ids)"
    " RETURNING wallet_id)"
    " INSERT INTO pruned_alerts AS p (wallet_id, alert_count) SELECT wallet_id, count(*) FROM gone"
    " WHERE wallet_id IS NOT NULL GROUP BY wallet_id ORDER BY wallet_id"
    " ON CONFLICT (wallet_id) DO UPDATE SET alert_count = p.alert_count + excluded.alert_count"
)

# --- providers' events ----------------------------------------------------------------------------

# Blank the bodies of events that were processed long ago and wait for nobody. The row stays: by it
# a repetition is known.
BLANK_BODIES: Final = text(
    "UPDATE provider_events SET body = '' WHERE event_number IN ("
    "SELECT event_number FROM provider_events WHERE body <> ''"
    " AND status IN ('applied', 'ignored')"
    " AND processed_at < now() - make_interval(days => :days)"
    " ORDER BY event_number LIMIT :page FOR UPDATE SKIP LOCKED)"
)

# --- dead letters ---------------------------------------------------------------------------------

# Forget dead letters that were sent again long ago, and were not refused once more.
DELETE_REFUSED: Final = text(
    "DELETE FROM refused_events WHERE refusal_id IN (SELECT refusal_id FROM refused_events"
    " WHERE replayed_at < now() - make_interval(days => :days)"
    " ORDER BY refusal_id LIMIT :page FOR UPDATE SKIP LOCKED)"
)
