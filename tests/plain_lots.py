"""What lots ought to do, told as plainly as can be: each debit keeps a list of who paid for it."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

FOREVER = datetime.max.replace(tzinfo=UTC)


@dataclass
class PlainLot:
    """A lot; `made`: its place in the order in which lots were made."""

    name: str
    left: int
    made: int
    priority: int = 50
    source: str = "manual"
    expires_at: datetime | None = None
    frozen: bool = False

    def is_spendable(self, now: datetime) -> bool:
        return self.left > 0 and not self.frozen and (self.expires_at or FOREVER) > now

    @property
    def turn(self) -> tuple[object, ...]:
        is_late = self.source != "promotional"
        return (self.priority, self.expires_at or FOREVER, is_late, self.made)


@dataclass
class PlainDebit:
    name: str
    owed: int
    paid: Counter[str] = field(default_factory=Counter)


@dataclass
class PlainWallet:
    """Lots and debits of one wallet. Every change ends with paying what is owed, oldest first."""

    lots: dict[str, PlainLot] = field(default_factory=dict)
    debits: list[PlainDebit] = field(default_factory=list)

    @property
    def debt(self) -> int:
        return sum(debit.owed for debit in self.debits)

    @property
    def balance(self) -> int:
        return sum(lot.left for lot in self.lots.values()) - self.debt

    @property
    def frozen(self) -> int:
        return sum(lot.left for lot in self.lots.values() if lot.frozen)

    def spendable(self, now: datetime) -> int:
        return sum(lot.left for lot in self.lots.values() if lot.is_spendable(now))

    def expired(self, now: datetime) -> list[PlainLot]:
        return [
            lot
            for lot in self.lots.values()
            if lot.left and not lot.frozen and (lot.expires_at or FOREVER) <= now
        ]

    def credit(self, lot: PlainLot, now: datetime) -> None:
        self.lots[lot.name] = lot
        self.pay(now)

    def debit(self, name: str, amount: int, now: datetime) -> PlainDebit:
        debit = PlainDebit(name, amount)
        self.debits.append(debit)
        self.pay(now)
        return debit

    def take(self, debit: PlainDebit, lot: str, amount: int) -> None:
        """Let a debit take from a lot of its choice."""
        self.lots[lot].left -= amount
        debit.paid[lot] += amount

    def give(self, lot: str, amount: int, now: datetime) -> None:
        self.lots[lot].left += amount
        self.pay(now)

    def freeze(self, lot: str, now: datetime, *, is_frozen: bool) -> None:
        self.lots[lot].frozen = is_frozen
        self.pay(now)

    def pay(self, now: datetime) -> None:
        for debit in self.debits:
            while debit.owed and (lots := self._spendable(now)):
                lot = min(lots, key=lambda lot: lot.turn)
                part = min(lot.left, debit.owed)
                lot.left -= part
                debit.owed -= part
                debit.paid[lot.name] += part

    def _spendable(self, now: datetime) -> list[PlainLot]:
        return [lot for lot in self.lots.values() if lot.is_spendable(now)]
