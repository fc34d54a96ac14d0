"""The first numbers of the advisory locks in Postgres. A sentence says what the second is.

Every lock ends with its transaction, and so with the connection of a worker that dies.
"""

from typing import Final

# A shard: one drain at a time settles its batches.
DRAIN: Final = 1735747692
# 0: one run at a time makes and drops partitions of kept usage.
MAINTENANCE: Final = 1735747693
# A shard: one run at a time prepares its batches.
PREPARE: Final = 1735747695
