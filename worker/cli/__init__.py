"""The `gullak` command."""
