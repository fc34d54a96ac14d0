"""Every queue, route, limit, retry default and schedule of the task queue, on one page.

A Celery message is only a wake-up: what must happen is found again in Redis or Postgres by the
periodic sweeps below, so a lost message costs one period and a repeated one changes nothing.
"""

from time import time
from typing import Final

from kombu import Queue

# --- what runs where: the queue is the stage, the stage is the task module ----------------------
imports = (
    "tasks.debit",
    "tasks.ledger",
    "tasks.low_credit",
    "tasks.payment",
    "tasks.purchase",
    "tasks.webhook",
)
STAGES: Final = ("debit", "ledger", "low_credit", "purchase", "webhook")
# A charge waits for a payment provider, for up to 40 s: a queue of its own, so that a provider
# which hangs holds up neither debits nor alerts.
# The sweep of the buffer has one, too: behind drains, of seconds each, it would expire.
task_queues = tuple(Queue(name) for name in (*STAGES, "charge", "sweep"))
task_routes = {
    "debit.sweep": {"queue": "sweep"},
    "purchase.charge": {"queue": "charge"},
    **{f"{stage}.*": {"queue": stage} for stage in STAGES},
}
task_default_queue = "ledger"
task_create_missing_queues = False

# --- messages: plain JSON, no results ------------------------------------------------------------
task_serializer = "json"
accept_content = ["json"]
task_ignore_result = True
result_backend = None
task_store_errors_even_if_ignored = False
enable_utc = True
timezone = "UTC"

# --- delivery: late acknowledgement, one message at a time ----------------------------------------
task_acks_late = True
task_reject_on_worker_lost = True
worker_prefetch_multiplier = 1
# Tasks end well before this; a worker that is killed gives its messages back within seconds.
broker_transport_options = {
    "visibility_timeout": 120,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    # A black-holed broker must not hang a publisher.
    "socket_timeout": 5,
    "socket_connect_timeout": 5,
    "retry_on_timeout": True,
    "health_check_interval": 10,
}
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# A broker that is full refuses: then the worker waits for room (`worker.watchdog`), and goes on.
broker_channel_error_retry = True
broker_pool_acquire_timeout = 5
task_publish_retry_policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0.2}
worker_cancel_long_running_tasks_on_connection_loss = True
# Nothing here uses it, and a shutdown by broadcast sends no signal that our handlers see.
worker_enable_remote_control = False

# --- limits -------------------------------------------------------------------------------------
task_soft_time_limit = 45  # s
task_time_limit = 60  # s: a child that hangs is replaced
worker_max_tasks_per_child = 20_000
worker_max_memory_per_child = 250_000  # KiB

# --- logging belongs to worker/log.py -------------------------------------------------------------
worker_hijack_root_logger = False
worker_redirect_stdouts = False
worker_send_task_events = False

# --- the schedule: each job is safe twice and safe at once, so two beats, or none for an hour,
# --- change no effect. `expires`: what nobody took within its period is not worked off later.
beat_scheduler = "worker.broker:BoundedScheduler"
beat_max_loop_interval = 1  # s
beat_schedule = {
    name: {"task": name, "schedule": period_s, "options": {"expires": max(period_s, 2)}}
    for name, period_s in {
        "debit.sweep": 1.0,  # shards with work -> debit.drain
        "debit.publish_quantities": 5.0,  # which properties are summed -> the edge
        "debit.partition": 3600.0,  # partitions made ahead, old ones dropped
        "debit.summarize": 60.0,  # the index of kept usage brought up to its last rows
        "debit.mark_mended": 60.0,  # dead letters whose id was sent again with good content
        "ledger.measure": 60.0,  # what waits for a person -> gauges
        "ledger.verify": 10.0,  # a slice of the hourly walk over every invariant
        "ledger.prune": 600.0,  # rows whose time is over, page by page
        "low_credit.check": 60.0,  # what posting did not see: a rule changed, a default added
        "purchase.expire": 5.0,  # credit whose time is over is taken out
        # Events of providers -> purchase.inbox; not settled -> .credit; charges due -> .charge.
        "purchase.sweep": 1.0,
        "purchase.tell_expiring": 300.0,  # credit that will expire soon
        "purchase.top_up": 2.0,  # wallets that are low and have a rule for it -> purchase.charge
        "webhook.sweep": 1.0,  # deliveries due -> webhook.deliver
    }.items()
}
# A walk that began before this process is out of date: the first begins when beat has started.
beat_schedule["ledger.verify"]["args"] = (int(time()),)
