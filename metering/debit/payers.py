"""The customers whom a batch charges, with their wallets, kept per process.

A customer never loses a wallet, and a change of billing currency moves the version of the
business's rate card (by trigger). So an entry is valid until that version moves. Without the cache,
reading 1,250 customers for each batch cost as much as locking their wallets.
"""

from collections.abc import Mapping
from threading import Lock
from typing import Final

from sqlalchemy import Connection

from metering.ids import BusinessId, CustomerId
from metering.ledger.wallets import Payer, payers

KEPT_MAX: Final = 100_000  # about 60 MiB; beyond it all payers are read anew


class Payers:
    """A bounded cache of payers; safe for the two threads of a drain."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[CustomerId, Payer] = {}
        self._versions: dict[BusinessId, int] = {}

    def of(
        self, conn: Connection, versions: Mapping[BusinessId, int], wanted: set[CustomerId]
    ) -> Mapping[CustomerId, Payer]:
        """Return the payers of those wanted customers that exist."""
        with self._lock:
            self._drop_outdated(versions)
            missing = wanted - self._kept.keys()
            if len(self._kept) + len(missing) > KEPT_MAX:
                self._kept.clear()
                self._versions = dict(versions)
                missing = wanted
            if missing:
                # No id holds NUL, and Postgres would refuse the query. A payer of a business
                # without a version is not kept, because nobody would see the version move.
                found = payers(conn, {wanted_id for wanted_id in missing if "\0" not in wanted_id})
                self._kept.update(
                    (key, payer) for key, payer in found.items() if payer.business_id in versions
                )
            return {wanted_id: self._kept[wanted_id] for wanted_id in wanted & self._kept.keys()}

    def _drop_outdated(self, versions: Mapping[BusinessId, int]) -> None:
        moved = {
            business_id
            for business_id, version in versions.items()
            if self._versions.get(business_id, version) != version
        }
        if moved:
            kept = self._kept.items()
            self._kept = {key: payer for key, payer in kept if payer.business_id not in moved}
        self._versions.update(versions)
