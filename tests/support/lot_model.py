"""A plain model of lots: each debit keeps a list of the lots that paid for it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

FOREVER = datetime.max.replace(tzinfo=UTC)


@dataclass
class PlainLot:
    """A lot; `made` is its position in the order of creation."""

    name: str
    left: int
    made: int
    priority: int = 50
    source: str = "manual"
    expires_at: datetime | None = None
    frozen: bool = False

    def has_expired(self, now: datetime) -> bool:
        return (self.expires_at or FOREVER) <= now

    def is_spendable(self, now: datetime) -> bool:
        return self.left > 0 and not self.frozen and not self.has_expired(now)

    @property
    def turn(self) -> tuple[object, ...]:
        is_late = self.source != "promotional"
        return (self.priority, self.expires_at or FOREVER, is_late, self.made)


@dataclass
class PlainDebit:
    """A debit, its position among all debits, and the lots that paid for its parts.

    A part that was taken from a chosen lot has no position.
    """

    name: str
    place: int
    owed: int
    parts: list[tuple[int | None, str, int]] = field(default_factory=list)

    @property
    def paid(self) -> Counter[str]:
        paid: Counter[str] = Counter()
        for _place, lot, amount in self.parts:
            paid[lot] += amount
        return paid


@dataclass
class PlainWallet:
    """Lots and debits of one wallet. Every change ends with the payment of debt, oldest first."""

    lots: dict[str, PlainLot] = field(default_factory=dict)
    debits: list[PlainDebit] = field(default_factory=list)
    line: int = 0

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
        return sum(lot.left for lot in self._spendable(now))

    def expired(self, now: datetime) -> list[PlainLot]:
        return [
            lot
            for lot in self.lots.values()
            if lot.left and not lot.frozen and lot.has_expired(now)
        ]

    def credit(self, lot: PlainLot, now: datetime) -> None:
        self.lots[lot.name] = lot
        self.pay(now)

    def debit(
        self, name: str, amount: int, now: datetime, taken: Sequence[tuple[str, int]] = ()
    ) -> PlainDebit:
        """Take `taken` from chosen lots and the rest in order; what no lot pays is debt."""
        owed = amount - sum(part for _lot, part in taken)
        debit = PlainDebit(name, self.line, owed, [(None, lot, part) for lot, part in taken])
        for lot, part in taken:
            self.lots[lot].left -= part
        self.line += owed
        self.debits.append(debit)
        self.pay(now)
        return debit

    def give(self, parts: Sequence[tuple[str, int]], now: datetime) -> None:
        for lot, amount in parts:
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
                in_turn = sum(paid for place, _lot, paid in debit.parts if place is not None)
                debit.parts.append((debit.place + in_turn, lot.name, part))
                lot.left -= part
                debit.owed -= part

    def _spendable(self, now: datetime) -> list[PlainLot]:
        return [lot for lot in self.lots.values() if lot.is_spendable(now)]

    def restorable(
        self, history: Sequence["PlainDebit | int"], amount: int, now: datetime
    ) -> list[tuple[str, int]]:
        """Return how much of `amount` goes back to which lots: the last consumed unit first.

        `history`: debits and earlier refunds, in their order. Units that are still debt, and units
        of an expired lot, go to no lot.
        """
        kept: list[str | None] = []
        for each in history:
            if isinstance(each, int):
                del kept[max(0, len(kept) - each) :]
                continue
            for _place, lot, part in sorted(each.parts, key=_by_choice_first):
                kept += [lot] * part
            kept += [None] * each.owed
        back = Counter(lot for lot in kept[max(0, len(kept) - amount) :] if lot is not None)
        return [(lot, part) for lot, part in back.items() if not self.lots[lot].has_expired(now)]


def _by_choice_first(part: tuple[int | None, str, int]) -> int:
    place, _lot, _amount = part
    return -1 if place is None else place
