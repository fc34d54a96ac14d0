"""What waits, measured on schedule and not at each scrape: the figures of `status` as gauges.

The gauges of a process outlive it, so every label that there may be is set each time: one that is
left out would keep its last value for ever.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Final

from metering.errors import RefusedEventError
from worker.metrics import (
    MEASURED,
    OLDEST_EVENT_SECONDS,
    PARKED,
    REFUSED_EVENTS,
    WALLETS_BELOW_ZERO,
    WEBHOOK_DELIVERIES,
)
from worker.status import Buffered, Waiting

_NOBODY: Final = 0


def publish(buffered: Buffered, waiting: Waiting, currencies: Iterable[str]) -> None:
    """Set the gauges to what was found."""
    OLDEST_EVENT_SECONDS.set(buffered.oldest_age_s or 0)
    for reason in {*refusal_reasons(), *waiting.refused}:
        REFUSED_EVENTS.labels(reason).set(waiting.refused.get(reason, 0))
    for state, deliveries in asdict(waiting.webhooks).items():
        WEBHOOK_DELIVERIES.labels(state).set(deliveries)
    for what, parked in asdict(waiting.parked).items():
        PARKED.labels(what).set(parked)
    for currency in {*currencies, *waiting.below_zero}:
        owed = waiting.below_zero.get(currency)
        WALLETS_BELOW_ZERO.labels(currency).set(_NOBODY if owed is None else owed.wallets)
    MEASURED.set(time.time())


def refusal_reasons(kind: type[RefusedEventError] = RefusedEventError) -> set[str]:
    """Return the reasons for which an event can be refused."""
    kinds = kind.__subclasses__()
    return {sub.reason for sub in kinds}.union(*(refusal_reasons(sub) for sub in kinds))
