"""The first numbers of the advisory locks in Postgres. A sentence says what the second is.

Every lock ends with its transaction, and so with the connection of a worker that dies.
"""

from typing import Final

# A shard: one drain at a time settles its batches.
DRAIN: Final = 1735747692
# 0: one run at a time makes and drops partitions of kept usage.
MAINTENANCE: Final = 1735747693
# A hash of business and idempotency key: requests for a ledger entry.
ENTRY_KEY: Final = 1735747694
# A shard: one run at a time prepares its batches.
PREPARE: Final = 1735747695
# A hash of business and idempotency key: requests for a webhook endpoint.
ENDPOINT_KEY: Final = 1735747696
# A hash of business and idempotency key: requests for a checkout.
CHECKOUT_KEY: Final = 1735747697
# A hash of business, provider and payment id: reports about one payment.
PAYMENT: Final = 1735747698
# 0: one slice of the walk over the invariants at a time.
VERIFY: Final = 1735747701
