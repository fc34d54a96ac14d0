"""A batch of usage → price → entries: what joins buffer, rate card and ledger."""
