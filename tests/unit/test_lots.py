"""Lots without a database: random histories against a plain model, 10,000 with `--slow`."""

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import get_args

import pytest

from metering.errors import InsufficientFundsError, LotRangeError
from metering.ids import BatchId, BusinessId, Currency, CustomerId, LotId, WalletId
from metering.ledger.entry import Entry, Lot, LotMove, LotTerms, Posting, Source, Wallet
from metering.ledger.lots.book import LotBook, Moved, Stretch, needing_lots
from metering.ledger.plan import plan_entries
from metering.money import ZERO
from support.lot_model import PlainDebit, PlainLot, PlainWallet

WALLET_ID = WalletId("wal_1")
START = datetime(2028, 2, 28, 23, 0, tzinfo=UTC)  # the day before a leap day
EMPTY = Wallet(
    WALLET_ID, BusinessId("bus_1"), CustomerId("cus_1"), Currency("USD"), 0, ZERO, 0, b"", 0
)
HISTORIES = 1_000
HISTORIES_SLOW = 10_000
STEPS = 12


@dataclass
class Books:
    """Keeps in memory what `post` and its statements store."""

    now: datetime = START
    wallet: Wallet = EMPTY
    lots: dict[LotId, Lot] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    moves: list[Moved] = field(default_factory=list)

    def post(self, *postings: Posting) -> list[Entry]:
        entries, moved = plan_entries({WALLET_ID: self.wallet}, postings, self.now)
        if not needing_lots(moved, postings):
            self.wallet = moved[WALLET_ID]
        else:
            book = self.book()
            for entry, posting in zip(entries, postings, strict=True):
                book.apply(entry, posting)
            self._keep(book, book.close(moved[WALLET_ID]))
        self.entries += entries
        return entries

    def book(self) -> LotBook:
        return LotBook(self.wallet, dict(self.lots), self.now)

    def freeze(self, lot_id: LotId, *, is_frozen: bool) -> None:
        frozen_at = self.now if is_frozen else None
        self.lots[lot_id] = self.lots[lot_id]._replace(frozen_at=frozen_at)
        book = self.book()
        self._keep(book, book.close(self.wallet))

    def _keep(self, book: LotBook, after: Wallet) -> None:
        changes = {lot_id for _wallet, lot_id, _left in book.changes()}
        for lot_id, lot in book.lots.items():
            is_new = lot_id in book.made or lot_id in changes
            left = book.left(lot_id) if is_new else lot.remaining_minor
            self.lots[lot_id] = lot._replace(remaining_minor=left)
        self.stretches += book.stretches
        self.moves += book.moves
        self.wallet = after

    def left(self) -> dict[str, int]:
        book = self.book()
        return {lot_id: book.left(lot_id) for lot_id in self.lots}

    def paid(self, entry: Entry) -> Counter[str]:
        """Which lots paid how much of a debit, from the stretches, as the database computes it."""
        paid: Counter[str] = Counter()
        moved = 0
        for move in self.moves:
            if move.entry_id == entry.entry_id:
                paid[move.lot_id] -= move.moved_minor
                moved -= move.moved_minor
        start = entry.debited_before_minor
        assert start is not None
        end = start + entry.amount_minor - moved
        wallet = self.wallet
        covering = list(self.stretches)
        if wallet.lot_id is not None:
            last = Stretch(WALLET_ID, wallet.lot_from_minor, wallet.covered_minor, wallet.lot_id)
            covering.append(last)
        for stretch in covering:
            part = min(end, stretch.to_minor) - max(start, stretch.from_minor)
            if part > 0:
                paid[stretch.lot_id] += part
        return paid


def credit(amount: int, **terms: object) -> Posting:
    return Posting(
        wallet_id=WALLET_ID,
        kind="manual",
        is_credit=True,
        amount_minor=amount,
        lot_terms=LotTerms(**terms),  # type: ignore[arg-type]
    )


def debit(amount: int, *, may_owe: bool = False, moves: tuple[LotMove, ...] = ()) -> Posting:
    return Posting(
        wallet_id=WALLET_ID,
        kind="manual",
        is_credit=False,
        amount_minor=amount,
        may_owe=may_owe,
        lot_moves=moves,
    )


def usage(cost: Decimal | int) -> Posting:
    return Posting(
        wallet_id=WALLET_ID,
        kind="usage",
        is_credit=False,
        exact_cost=Decimal(cost),
        batch_id=BatchId(1),
        event_count=1,
    )


def give(moves: tuple[LotMove, ...]) -> Posting:
    amount = sum(move.amount_minor for move in moves)
    return Posting(
        wallet_id=WALLET_ID, kind="refund", is_credit=True, amount_minor=amount, lot_moves=moves
    )


class History:
    """One random history, applied to the real code and to the model."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.books, self.plain = Books(), PlainWallet()
        self.debits: list[tuple[Entry, PlainDebit]] = []

    def step(self) -> None:
        steps = {
            self.credit: 4, self.usage: 6, self.debit: 2, self.wait: 3, self.expire: 2,
            self.freeze: 2, self.take_back: 2, self.give_back: 2,
        }  # fmt: skip
        (step,) = self.random.choices(list(steps), list(steps.values()))
        step()
        self.check()

    def credit(self) -> None:
        amount = self.random.randint(1, 20)
        hours = self.random.choice([None, 1, 2, 24, 48])
        expires_at = None if hours is None else self.books.now + timedelta(hours=hours)
        priority = self.random.choice([50, 50, 50, 10])
        source = self.random.choice(get_args(Source))
        (entry,) = self.books.post(
            credit(amount, expires_at=expires_at, priority=priority, source=source)
        )
        (lot_id,) = [lot_id for lot_id in self.books.lots if lot_id not in self.plain.lots]
        made = len(self.plain.lots)
        lot = PlainLot(lot_id, amount, made, priority, source, expires_at)
        self.books.now = entry.created_at + timedelta(seconds=1)
        self.plain.credit(lot, self.books.now)

    def usage(self) -> None:
        costs = [self.random.randint(0, 9) for _ in range(self.random.choice([1, 1, 2]))]
        for cost, entry in zip(costs, self.books.post(*map(usage, costs)), strict=True):
            self._debited(entry, cost)

    def debit(self) -> None:
        amount, spendable = self.random.randint(1, 15), self.plain.spendable(self.books.now)
        if amount > spendable:
            with pytest.raises(InsufficientFundsError):
                self.books.post(debit(amount))
            return
        (entry,) = self.books.post(debit(amount))
        self._debited(entry, amount)

    def _debited(self, entry: Entry, amount: int) -> None:
        plain = self.plain.debit(entry.entry_id, amount, self.books.now)
        self.debits.append((entry, plain))

    def wait(self) -> None:
        self.books.now += timedelta(minutes=self.random.choice([1, 59, 60, 24 * 60]))

    def expire(self) -> None:
        for lot in self.plain.expired(self.books.now):
            moves = (LotMove(LotId(lot.name), lot.left),)
            (entry,) = self.books.post(debit(lot.left, may_owe=True, moves=moves))
            taken = [(lot.name, lot.left)]
            plain = self.plain.debit(entry.entry_id, lot.left, self.books.now, taken)
            self.debits.append((entry, plain))

    def freeze(self) -> None:
        if self.plain.lots:
            lot = self.random.choice(list(self.plain.lots.values()))
            is_frozen = not lot.frozen
            self.books.freeze(LotId(lot.name), is_frozen=is_frozen)
            self.plain.freeze(lot.name, self.books.now, is_frozen=is_frozen)

    def take_back(self) -> None:
        """As a refund of a payment: from its lot, then from the others in order, then as debt."""
        if not self.plain.lots:
            return
        lot = self.random.choice(list(self.plain.lots.values()))
        amount = self.random.randint(1, 20)
        own = min(amount, lot.left)
        moves = (LotMove(LotId(lot.name), own),) if own else ()
        (entry,) = self.books.post(debit(amount, may_owe=True, moves=moves))
        taken = [(lot.name, own)] if own else []
        plain = self.plain.debit(entry.entry_id, amount, self.books.now, taken)
        self.debits.append((entry, plain))

    def give_back(self) -> None:
        """As a refund of a debit: to the lots that it consumed."""
        paid = [(entry, plain) for entry, plain in self.debits if +plain.paid]
        if not paid:
            return
        _entry, plain = self.random.choice(paid)
        parts = list(plain.paid.items())
        self.books.post(give(tuple(LotMove(LotId(name), part) for name, part in parts)))
        self.plain.give(parts, self.books.now)
        self.debits.remove((_entry, plain))

    def check(self) -> None:
        books, plain = self.books, self.plain
        assert books.left() == {name: lot.left for name, lot in plain.lots.items()}
        assert books.wallet.balance_minor == plain.balance
        assert books.wallet.frozen_minor == plain.frozen
        assert books.wallet.debited_minor - books.wallet.covered_minor == plain.debt
        for entry, debit_ in self.debits:
            assert books.paid(entry) == debit_.paid
            assert debit_.paid.total() + debit_.owed == entry.amount_minor


def test_every_history_consumes_lots_as_the_plain_model_does(pytestconfig: pytest.Config) -> None:
    for seed in range(HISTORIES_SLOW if pytestconfig.getoption("--slow") else HISTORIES):
        history = History(seed)
        for _ in range(STEPS):
            history.step()


def test_a_debit_as_large_as_the_lot_empties_it_and_the_next_one_is_debt() -> None:
    books = Books()
    books.post(credit(5))

    books.post(usage(5), usage(1))

    assert list(books.left().values()) == [0]
    assert books.wallet.debited_minor - books.wallet.covered_minor == 1


def test_lots_are_consumed_by_priority_then_expiry_then_promotions_then_age() -> None:
    books = Books()
    soon, late = START + timedelta(days=1), START + timedelta(days=2)
    for amount, terms in enumerate(
        (
            {"source": "paid"},
            {"source": "promotional"},
            {"source": "paid", "expires_at": late},
            {"source": "paid", "expires_at": soon},
            {"source": "paid", "priority": 10},
        ),
        start=1,
    ):
        books.post(credit(amount, **terms))  # type: ignore[arg-type]
    consumed = []
    for _ in range(15):
        before = books.left()
        books.post(usage(1))
        consumed += [
            books.lots[LotId(n)].amount_minor for n in before if before[n] > books.left()[n]
        ]

    assert consumed == [5] * 5 + [4] * 4 + [3] * 3 + [2] * 2 + [1]


def test_a_lot_is_not_consumed_from_its_expiry_on() -> None:
    books = Books()
    books.post(credit(5, expires_at=START + timedelta(hours=1)))

    books.now = START + timedelta(hours=1)
    books.post(usage(1))

    assert list(books.left().values()) == [5]
    assert books.wallet.balance_minor == 4


def test_a_lot_gives_no_more_than_is_left() -> None:
    books = Books()
    books.post(credit(5), credit(5))
    lot_id = next(iter(books.lots))

    with pytest.raises(LotRangeError):
        books.post(debit(6, moves=(LotMove(lot_id, 6),)))


def test_a_lot_takes_back_no_more_than_its_amount() -> None:
    books = Books()
    books.post(credit(5))
    lot_id = next(iter(books.lots))

    with pytest.raises(LotRangeError):
        books.post(give((LotMove(lot_id, 1),)))
