"""Compiled rate cards, kept per process and compiled again when their version in Postgres moves."""

from collections.abc import Sequence
from threading import Lock
from typing import Final

from sqlalchemy import Connection

from metering.ids import BusinessId, Currency
from metering.rate_card import statements
from metering.rate_card.card import RateCard
from metering.rate_card.catalogue import list_meters, list_prices

KEPT_MAX: Final = 1_000  # cards of so many businesses; one of a hundred meters takes 0.2 MiB


class RateCards:
    """A cache that drops the card that was not used for longest. One query per batch checks it.

    Safe for the two threads of a drain.
    """

    def __init__(self, currencies: Sequence[str], kept_max: int = KEPT_MAX) -> None:
        self._currencies = tuple(Currency(code) for code in currencies)
        self._kept_max = kept_max
        self._lock = Lock()
        # Versions and cards, in the order of their last use.
        self._cards: dict[BusinessId, tuple[int, RateCard]] = {}

    def versions(self, conn: Connection, business_ids: set[BusinessId]) -> dict[BusinessId, int]:
        """Return the versions of these businesses' cards; unknown businesses have none."""
        rows = conn.execute(statements.VERSIONS, {"business_ids": sorted(business_ids)})
        return {row.business_id: row.rate_card_version for row in rows}

    def current(
        self, conn: Connection, versions: dict[BusinessId, int]
    ) -> dict[BusinessId, RateCard]:
        """Return the cards at these versions, and compile those that are not kept."""
        return {
            business_id: self._card(conn, business_id, version)
            for business_id, version in versions.items()
        }

    def _card(self, conn: Connection, business_id: BusinessId, version: int) -> RateCard:
        with self._lock:
            kept = self._cards.pop(business_id, None)
            if kept is not None and kept[0] == version:
                self._cards[business_id] = kept
                return kept[1]
        card = RateCard(
            list_meters(conn, business_id),
            list_prices(conn, business_id),
            self._currencies,
            conn.execute(statements.ON_UNMETERED, {"business_id": business_id}).scalar_one(),
        )
        with self._lock:
            self._cards[business_id] = (version, card)
            if len(self._cards) > self._kept_max:
                del self._cards[next(iter(self._cards))]
        return card


def summed_properties(conn: Connection) -> dict[BusinessId, dict[str, list[str]]]:
    """Return the properties that meters sum, by business and event name."""
    found: dict[BusinessId, dict[str, list[str]]] = {}
    for row in conn.execute(statements.SUMMED_PROPERTIES):
        found.setdefault(row.business_id, {})[row.event_name] = list(row.properties)
    return found
