"""What Prometheus sees of this process."""

from prometheus_client import Counter, Gauge, Histogram

TASK_RUNS = Counter("gullak_task_runs_total", "Runs of a task by outcome.", ["task", "outcome"])
TASK_SECONDS = Histogram("gullak_task_seconds", "How long a run of a task took.", ["task"])
EVENTS = Counter("gullak_events_total", "Events by where they ended.", ["outcome"])
EVENTS_REFUSED = Counter(
    "gullak_events_refused_total", "Events that became dead letters, by reason.", ["reason"]
)
BACKLOG_EVENTS = Gauge(
    "gullak_backlog_events",
    "Events in the buffer at the last sweep.",
    multiprocess_mode="mostrecent",
)
SHARD_WAITS_FOR_UPGRADE = Gauge(
    "gullak_shard_waits_for_upgrade",
    "1 while a shard begins with a chunk that only a newer release can read.",
    ["shard"],
    multiprocess_mode="mostrecent",
)
OLDEST_EVENT_SECONDS = Gauge(
    "gullak_oldest_buffered_event_age_seconds",
    "How long the oldest buffered event had waited at the last measurement; 0: none waited.",
    multiprocess_mode="mostrecent",
)
LAG_SECONDS = Histogram(
    "gullak_drain_lag_seconds",
    "From the buffering of the last chunk of a drain to its debit.",
    buckets=(0.1, 0.25, 0.5, 1, 2, 5, 15, 60, 300, 1800),
)
SERVER_FAULTS = Counter(
    "gullak_server_faults_total",
    "Errors that are the server's fault; what it was asked for waits.",
    ["sqlstate_class", "stage"],
)
LEDGER_FAULTS = Gauge(
    "gullak_ledger_faults",
    "Broken invariants that the last complete scheduled check found and nobody has accepted.",
    multiprocess_mode="mostrecent",
)
LEDGER_VERIFIED = Gauge(
    "gullak_ledger_verified_timestamp_seconds",
    "When the last complete scheduled check ended, Unix time; 0: none has.",
    multiprocess_mode="mostrecent",
)
HTTP_REQUESTS = Counter(
    "gullak_http_requests_total", "Answered requests.", ["method", "route", "status"]
)
HTTP_SECONDS = Histogram("gullak_http_request_seconds", "How long a request took.", ["route"])
ACCEPTED_EVENTS = Counter("gullak_accepted_events_total", "Events taken over HTTP.")
PROVIDER_WEBHOOKS = Counter(
    "gullak_provider_webhooks_total",
    "Webhooks of payment providers: stored, repeated, or refused for their signature.",
    ["provider", "outcome"],
)
WEBHOOK_ATTEMPTS = Counter(
    "gullak_webhook_attempts_total",
    "Attempts to deliver a webhook: delivered, failed and tried again, or dead.",
    ["outcome"],
)
# What `worker.measure` finds, once a minute: it looks at every wallet.
MEASURED = Gauge(
    "gullak_measured_timestamp_seconds",
    "When the last measurement ended, Unix time: what it finds is as old as this.",
    multiprocess_mode="mostrecent",
)
REFUSED_EVENTS = Gauge(
    "gullak_refused_events",
    "Events that wait as dead letters, by reason.",
    ["reason"],
    multiprocess_mode="mostrecent",
)
WEBHOOK_DELIVERIES = Gauge(
    "gullak_webhook_deliveries",
    "Webhooks that have not arrived: pending, failing (pending, and tried in vain), dead.",
    ["state"],
    multiprocess_mode="mostrecent",
)
PARKED = Gauge(
    "gullak_parked",
    "What waits for a person: payments, charges, provider_events.",
    ["what"],
    multiprocess_mode="mostrecent",
)
WALLETS_BELOW_ZERO = Gauge(
    "gullak_wallets_below_zero",
    "Wallets with a balance below zero.",
    ["currency"],
    multiprocess_mode="mostrecent",
)
