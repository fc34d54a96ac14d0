"""One broken invariant, and a name for it that stays while it is the same fault."""

from dataclasses import dataclass
from hashlib import blake2b

from metering.ids import EntryId, FaultId, WalletId

NO_EVENT_LOST = "no accepted event was lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One broken invariant: which, what is off, and the wallet and entry at fault."""

    invariant: str
    detail: str
    wallet_id: WalletId | None = None
    entry_id: EntryId | None = None

    @property
    def fault_id(self) -> FaultId:
        """Return its name, made of all that it says: a fault that grows is another one."""
        said = (self.invariant, self.detail, self.wallet_id or "", self.entry_id or "")
        return FaultId("flt_" + blake2b("\0".join(said).encode(), digest_size=8).hexdigest())


def loss_of(shard: int, epoch: str, events: int) -> Fault:
    """Return the fault of a shard that lost events between Redis' taking them and their debit."""
    detail = f"shard {shard}: {events} accepted events are gone from Redis (epoch {epoch})"
    return Fault(invariant=NO_EVENT_LOST, detail=detail)
