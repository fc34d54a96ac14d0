"""The first numbers of this project's advisory locks in Postgres. The second says of what.

Every lock ends with its transaction, so with a dead worker's connection too.
"""

from typing import Final

DRAIN: Final = 1735747692
MAINTENANCE: Final = 1735747693
ENTRY_KEY: Final = 1735747694
PREPARE: Final = 1735747695
ENDPOINT_KEY: Final = 1735747696
CHECKOUT_KEY: Final = 1735747697
PAYMENT: Final = 1735747698
VERIFY: Final = 1735747701
