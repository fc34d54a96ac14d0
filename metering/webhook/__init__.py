"""The outbox → signed HTTP calls, retries, dead letters, replay."""
