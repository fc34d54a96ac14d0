"""What Prometheus sees of this process."""

from prometheus_client import Counter, Histogram

TASK_RUNS = Counter("gullak_task_runs_total", "Runs of a task by outcome.", ["task", "outcome"])
TASK_SECONDS = Histogram("gullak_task_seconds", "How long a run of a task took.", ["task"])
EVENTS = Counter("gullak_events_total", "Events by where they ended.", ["outcome"])
