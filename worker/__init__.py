"""The process around the stages: settings, sessions, Celery app, command line, embedded servers."""
