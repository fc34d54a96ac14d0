"""Lots: portions of credit. Debits consume them in an order, and never after they have expired.

The order: the smaller priority, then the earlier expiry, then promotional before the rest, then
the oldest. A debit that no lot can pay is debt; the next credit pays it first. The clock of the
database at the debit decides whether a lot has expired, not the time of the usage: usage that is
still in the buffer does not extend a lot.

A wallet's debits lie on a line, each from where the one before it ended. Lots pay for stretches of
that line, so the place of a debit says which lots it consumed. The current lot stands in the
wallet's row with what is left of it. As long as it lasts, a debit touches no lot, and posting costs
as much as without lots. `LotBook` handles all other cases: it has all lots of one wallet.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Final, NamedTuple

from sqlalchemy import Connection

from metering.copy_format import array
from metering.errors import InsufficientFundsError, LotRangeError
from metering.ids import EntryId, LotId, WalletId, new_id
from metering.ledger.entry import Entry, Lot, LotMove, LotTerms, Posting, Wallet
from metering.ledger.lots import statements

_TURN: Final = attrgetter("turn")


class Stretch(NamedTuple):
    """A lot paid for the debits of its wallet between two positions."""

    wallet_id: WalletId
    from_minor: int
    to_minor: int
    lot_id: LotId


class Moved(NamedTuple):
    """An entry took from a lot that it names (below zero), or gave back to it."""

    entry_id: EntryId
    wallet_id: WalletId
    lot_id: LotId
    moved_minor: int


@dataclass(slots=True)
class LotBook:
    """The lots of a locked wallet that are not empty, while entries are applied."""

    wallet: Wallet
    lots: dict[LotId, Lot]
    now: datetime
    stretches: list[Stretch] = field(default_factory=list)
    moves: list[Moved] = field(default_factory=list)
    # New lots, and the entries that made them.
    made: dict[LotId, EntryId] = field(default_factory=dict)
    _left: dict[LotId, int] = field(default_factory=dict)
    # Lots that debits may consume, in reverse order. None if it must be sorted again.
    _queue: list[Lot] | None = None
    _open: LotId | None = None
    _debited: int = 0
    _covered: int = 0
    _from: int = 0

    def __post_init__(self) -> None:
        wallet = self.wallet
        self._left = {lot.lot_id: lot.remaining_minor for lot in self.lots.values()}
        if wallet.lot_id is not None:
            self._left[wallet.lot_id] = wallet.lot_left_minor
        self._open, self._from = wallet.lot_id, wallet.lot_from_minor
        self._debited, self._covered = wallet.debited_minor, wallet.covered_minor

    def apply(self, entry: Entry, posting: Posting) -> None:
        """Let an entry consume lots, fill them, or make one.

        Raises:
            InsufficientFundsError: lots and overdraft do not pay a debit that may not leave a debt.
            LotRangeError: a lot that the posting names has too little left, or has no room.

        """
        sign = 1 if entry.is_credit else -1
        for move in posting.lot_moves:
            self._move(entry.entry_id, move, sign)
        rest = entry.amount_minor - posting.moved_minor
        if not entry.is_credit:
            self._debited += rest
        elif rest:
            self._make(entry, rest, posting.lot_terms)
        self._cover()
        if rest and not (entry.is_credit or entry.kind == "usage" or posting.may_owe):
            self._check_debt(rest)

    def _check_debt(self, amount_minor: int) -> None:
        owed = self._debited - self._covered
        if owed > self.wallet.overdraft_limit_minor:
            raise InsufficientFundsError(self.wallet.wallet_id, amount_minor - owed, amount_minor)

    def _move(self, entry_id: EntryId, move: LotMove, sign: int) -> None:
        lot, left = self.lots[move.lot_id], self._left[move.lot_id]
        moved = sign * move.amount_minor
        if not 0 <= left + moved <= lot.amount_minor:
            raise LotRangeError(move.lot_id, left, moved)
        self._left[move.lot_id] = left + moved
        self.moves.append(Moved(entry_id, self.wallet.wallet_id, move.lot_id, moved))
        self._queue = None

    def _make(self, entry: Entry, amount_minor: int, terms: LotTerms) -> None:
        lot = Lot(
            lot_id=LotId(new_id("lot")),
            wallet_id=entry.wallet_id,
            source=terms.source,
            priority=terms.priority,
            amount_minor=amount_minor,
            remaining_minor=amount_minor,
            cost_basis_minor=terms.cost_basis_minor,
            expires_at=terms.expires_at,
            frozen_at=None,
            created_at=entry.created_at,
        )
        self.lots[lot.lot_id] = lot
        self._left[lot.lot_id] = amount_minor
        self.made[lot.lot_id] = entry.entry_id
        self._queue = None

    def _cover(self) -> None:
        """Pay the debt as far as the lots reach."""
        while self._covered < self._debited and (lot := self._next()) is not None:
            self._turn_to(lot.lot_id)
            part = min(self._left[lot.lot_id], self._debited - self._covered)
            self._left[lot.lot_id] -= part
            self._covered += part

    def _next(self) -> Lot | None:
        """Return the lot that pays next."""
        if self._queue is None:
            self._queue = sorted(self._spendable(), key=_TURN, reverse=True)
        queue = self._queue
        while queue and not self._left[queue[-1].lot_id]:
            queue.pop()
        return queue[-1] if queue else None

    def _spendable(self) -> Iterable[Lot]:
        return [
            lot
            for lot in self.lots.values()
            if self._left[lot.lot_id] > 0 and lot.is_spendable(self.now)
        ]

    def _turn_to(self, lot_id: LotId | None) -> None:
        """End the stretch of the lot before, if there was one, and begin the next."""
        if lot_id == self._open:
            return
        if self._open is not None and self._covered > self._from:
            self.stretches.append(
                Stretch(self.wallet.wallet_id, self._from, self._covered, self._open)
            )
        self._open, self._from = lot_id, self._covered

    def close(self, after: Wallet) -> Wallet:
        """Select the current lot; return the wallet `after` the entries with it."""
        self._cover()
        lot = self._next()
        self._turn_to(None if lot is None else lot.lot_id)
        return after._replace(
            debited_minor=self._debited,
            covered_minor=self._covered,
            lot_id=self._open,
            lot_left_minor=0 if lot is None else self._left[lot.lot_id],
            lot_from_minor=self._from,
            lot_until=None if lot is None else lot.expires_at,
            frozen_minor=sum(
                self._left[lot.lot_id] for lot in self.lots.values() if lot.frozen_at is not None
            ),
        )

    @property
    def spendable_minor(self) -> int:
        """Return how much debits may consume now."""
        return sum(self._left[lot.lot_id] for lot in self._spendable())

    def spendable_without(self, lot_id: LotId | None) -> int:
        """Return how much debits may consume now in other lots than this one."""
        return sum(self._left[lot.lot_id] for lot in self._spendable() if lot.lot_id != lot_id)

    def left(self, lot_id: LotId) -> int:
        """Return what is left of a lot."""
        return self._left[lot_id]

    def changes(self) -> list[tuple[WalletId, LotId, int]]:
        """Return wallet, id and what is left, for each stored lot that has changed."""
        return [
            (self.wallet.wallet_id, lot_id, left)
            for lot_id, left in self._left.items()
            if lot_id not in self.made and left != self.lots[lot_id].remaining_minor
        ]


def needing_lots(after: Mapping[WalletId, Wallet], postings: Iterable[Posting]) -> set[WalletId]:
    """Return the wallets that need a book.

    A wallet needs none if it has only usage, and its current lot pays for that or it has no lot.
    """
    found = {posting.wallet_id for posting in postings if posting.kind != "usage"}
    found.update(
        wallet.wallet_id
        for wallet in after.values()
        if wallet.lot_id is not None and wallet.covered_minor != wallet.debited_minor
    )
    return found


def open_books(
    conn: Connection,
    wallets: Mapping[WalletId, Wallet],
    wanted: set[WalletId],
    now: datetime,
    also: Iterable[LotId] = (),
) -> dict[WalletId, LotBook]:
    """Return the books of wallets that the caller has locked. `also` are lots that may be empty."""
    if not wanted:
        return {}
    lots: dict[WalletId, dict[LotId, Lot]] = {wallet_id: {} for wallet_id in wanted}
    for row in conn.execute(statements.LOTS_LEFT, {"wallet_ids": array(sorted(wanted))}):
        lot = Lot._make(row)
        lots[lot.wallet_id][lot.lot_id] = lot
    if named := sorted(also):
        for row in conn.execute(statements.LOTS, {"wallet_ids": sorted(wanted), "lot_ids": named}):
            lots[row.wallet_id].setdefault(row.lot_id, Lot(*row))
    return {wallet_id: LotBook(wallets[wallet_id], lots[wallet_id], now) for wallet_id in wanted}


def write_books(conn: Connection, books: Sequence[LotBook]) -> None:
    """Write the changes of the lots, after the entries and before the wallets."""
    made = [
        (*book.lots[lot_id]._replace(remaining_minor=book.left(lot_id)), entry_id)
        for book in books
        for lot_id, entry_id in book.made.items()
    ]
    changes = [change for book in books for change in book.changes()]
    stretches = [stretch for book in books for stretch in book.stretches]
    moves = [move for book in books for move in book.moves]
    for statement, names, rows in (
        (statements.INSERT_LOTS, (*Lot._fields, "entry_id"), made),
        (statements.LEAVE_IN_LOTS, ("wallet_id", "lot_id", "remaining_minor"), changes),
        (statements.INSERT_STRETCHES, Stretch._fields, stretches),
        (statements.INSERT_LOT_MOVES, Moved._fields, moves),
    ):
        if rows:
            columns = map(array, zip(*rows, strict=True))
            conn.execute(statement, dict(zip(names, columns, strict=True)))
