"""`gullak import`: usage events from a file."""
