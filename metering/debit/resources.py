"""The resources of a drain, made once per process."""

from dataclasses import dataclass, field
from typing import Final

from metering.buffer.keys import Shard
from metering.buffer.stream import UsageBuffer
from metering.checkpoint import Checkpoint, no_checkpoint
from metering.db import Transactions
from metering.debit.payers import Payers
from metering.rate_card.cards import RateCards

# A batch of one chunk is the smallest.
HALVINGS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Drain:
    """Both stores, the caches, and the size of a batch."""

    transaction: Transactions
    buffer: UsageBuffer
    cards: RateCards
    batch_events: int
    checkpoint: Checkpoint = no_checkpoint
    payers: Payers = field(default_factory=Payers)
    # How often the batches of a shard are halved, because Postgres ended a statement in time-out.
    halvings: dict[Shard, int] = field(default_factory=dict)

    def smaller(self, shard: Shard) -> None:
        """Halve the next batches of a shard."""
        self.halvings[shard] = min(HALVINGS_MAX, self.halvings.get(shard, 0) + 1)

    def larger(self, shard: Shard) -> None:
        """Undo one halving: a batch was settled."""
        if (halvings := self.halvings.pop(shard, 0)) > 1:
            self.halvings[shard] = halvings - 1
