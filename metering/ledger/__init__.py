"""Postgres: wallets and their entries. `post.py` is the only place where a balance changes."""
