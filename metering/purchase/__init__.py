"""Money in, and back out: packages, purchases, refunds and disputes, expiry, top-ups."""
