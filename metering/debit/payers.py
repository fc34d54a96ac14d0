"""Whom a batch charges: customers and their wallets, kept per process.

A customer's wallets are never taken away, and its billing currency is part of what the version of
the business's rate card stands for (the database moves it), so what is kept stays right until that
version moves. Looking up 1,250 customers for each batch cost as much as locking their wallets.
"""

from collections.abc import Mapping
from threading import Lock
from typing import Final

from sqlalchemy import Connection

from metering.ids import BusinessId, CustomerId
from metering.ledger.wallets import Payer, payers

KEPT_MAX: Final = 100_000  # about 60 MiB; then everything is looked up anew


class Payers:
    """A bounded cache of payers; safe for the two threads of a drain."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: dict[CustomerId, Payer] = {}
        self._versions: dict[BusinessId, int] = {}

    def of(
        self, conn: Connection, versions: Mapping[BusinessId, int], wanted: set[CustomerId]
    ) -> Mapping[CustomerId, Payer]:
        """Return a mapping that holds those of the wanted customers that exist."""
        with self._lock:
            self._forget_outdated(versions)
            missing = wanted - self._known.keys()
            if len(self._known) + len(missing) > KEPT_MAX:
                self._known.clear()
                self._versions = dict(versions)
                missing = wanted
            if missing:
                # No id holds NUL, and Postgres could not even be asked for one. Of a business whose
                # version is not known nothing may be kept: nobody would see it move.
                found = payers(conn, {wanted_id for wanted_id in missing if "\0" not in wanted_id})
                self._known.update(
                    (key, payer) for key, payer in found.items() if payer.business_id in versions
                )
            return {wanted_id: self._known[wanted_id] for wanted_id in wanted & self._known.keys()}

    def _forget_outdated(self, versions: Mapping[BusinessId, int]) -> None:
        moved = {
            business_id
            for business_id, version in versions.items()
            if self._versions.get(business_id, version) != version
        }
        if moved:
            kept = self._known.items()
            self._known = {key: payer for key, payer in kept if payer.business_id not in moved}
        self._versions.update(versions)
