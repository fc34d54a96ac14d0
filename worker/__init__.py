"""The process: settings, sessions, Celery app, metrics, watchdogs, command line, local stack."""
