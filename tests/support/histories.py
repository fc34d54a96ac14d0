"""Random histories of many wallets on a real database, each compared with a plain model.

Every wallet is a history of its own: credits that expire, usage, purchases, refunds and disputes in
any order, repeated or not, and days that pass. What is posted for all wallets goes through the
gateway together, so that thousands of histories take minutes.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row

from metering.clock import utc_now
from metering.ids import CustomerId, PurchaseId, WalletId
from metering.ledger.businesses import BusinessChange, change_business
from metering.ledger.entry import LotTerms, Posting
from metering.ledger.lots.restore import RESTORED_VALID_DAYS
from metering.ledger.post import post
from metering.ledger.wallets import wallet_of
from metering.payment.facts import PaymentFact, ReversalFact, note_payment, note_reversal
from metering.purchase.expire import expire_credit
from metering.purchase.purchases import Terms, place
from metering.purchase.reversal_target import ReversalStatus
from metering.purchase.settle import settle_purchase
from support.lot_model import PlainDebit, PlainLot, PlainWallet
from support.tenant import Shop

BATCH = "SELECT max(batch_id) FROM usage_batches"
NEW_ENTRIES = """SELECT e.wallet_id, e.entry_id, e.amount_minor, e.is_credit, e.kind, e.reference,
    (SELECT l.lot_id FROM credit_lots l WHERE l.wallet_id = e.wallet_id
        AND l.entry_id = e.entry_id) AS lot_id
    FROM known_versions k JOIN wallets w USING (wallet_id)
    JOIN ledger_entries e ON e.wallet_id = k.wallet_id AND e.version > k.known
    WHERE w.business_id = '{business}' ORDER BY e.wallet_id, e.version"""
KNOW_VERSIONS = """TRUNCATE known_versions;
    INSERT INTO known_versions SELECT wallet_id, version FROM wallets;
    ANALYZE known_versions, wallets, ledger_entries, credit_lots, lot_stretches, lot_moves"""
LOTS = """SELECT l.wallet_id, l.lot_id, CASE WHEN w.lot_id = l.lot_id THEN w.lot_left_minor
        ELSE l.remaining_minor END AS left_minor FROM credit_lots l JOIN wallets w USING (wallet_id)
    WHERE l.business_id = '{business}'"""
WALLETS = """SELECT wallet_id, balance_minor, frozen_minor, debited_minor - covered_minor AS debt
    FROM wallets WHERE business_id = '{business}' AND currency = 'USD'"""
ALLOCATIONS = """SELECT a.entry_id, a.lot_id, sum(a.amount_minor)::bigint AS amount_minor
    FROM lot_allocations a JOIN ledger_entries e USING (entry_id)
    WHERE e.business_id = '{business}' AND NOT e.is_credit GROUP BY a.entry_id, a.lot_id"""


@dataclass
class PlainPurchase:
    """A purchase, its refunds and disputes, and the credit that was called back so far."""

    purchase_id: PurchaseId
    payment_id: str
    credit: int
    paid: int
    lot: str = ""
    refunds: dict[str, int | None] = field(default_factory=dict)
    disputes: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    called: int = 0
    shortfall: int = 0
    # Debits that took credit back, and later amounts that were given back, in order.
    reversals: list[PlainDebit | int] = field(default_factory=list)

    @property
    def due(self) -> int:
        lost = [amount for state, amount in self.disputes.values() if state == "lost"]
        amounts = [*self.refunds.values(), *lost]
        total = sum(self.paid if amount is None else amount for amount in amounts)
        return self.credit * min(self.paid, total) // self.paid

    @property
    def is_disputed(self) -> bool:
        return any(state == "open" for state, _amount in self.disputes.values())


@dataclass
class History:
    """One wallet and its model. `facts` can be repeated."""

    customer_id: CustomerId
    wallet_id: WalletId
    random: random.Random
    stops_at_zero: bool
    plain: PlainWallet = field(default_factory=PlainWallet)
    debits: dict[str, PlainDebit] = field(default_factory=dict)
    purchases: list[PlainPurchase] = field(default_factory=list)
    facts: list[ReversalFact] = field(default_factory=list)
    # The expired amount of each lot.
    gone: Counter[str] = field(default_factory=Counter)
    sequence: int = 0

    def number(self) -> int:
        self.sequence += 1
        return self.sequence

    # --- the model follows the database ----------------------------------------------------------

    def credited(self, row: Row[Any], now: datetime, **terms: Any) -> None:
        made = len(self.plain.lots)
        self.plain.credit(PlainLot(row.lot_id, row.amount_minor, made, **terms), now)

    def debited(self, row: Row[Any], now: datetime, amount: int) -> None:
        self.debits[row.entry_id] = self.plain.debit(row.entry_id, amount, now)

    def expired(self, row: Row[Any], now: datetime) -> None:
        left = self.plain.lots[row.reference].left
        self.gone[row.reference] += left
        taken = [(row.reference, left)]
        self.debits[row.entry_id] = self.plain.debit(row.entry_id, left, now, taken)

    def follow(self, purchase: PlainPurchase, rows: list[Row[Any]], now: datetime) -> None:
        """Apply the facts of the purchase to the model."""
        more = purchase.due - purchase.called
        purchase.called += more
        if more > 0:
            self._take(purchase, more, rows, now)
        elif more < 0:
            self._give(purchase, -more, rows, now)
        self.plain.freeze(purchase.lot, now, is_frozen=purchase.is_disputed)
        assert not rows

    def _take(
        self, purchase: PlainPurchase, amount: int, rows: list[Row[Any]], now: datetime
    ) -> None:
        own = self.plain.lots[purchase.lot]
        part = min(amount, own.left)
        others = self.plain.spendable(now) - (own.left if own.is_spendable(now) else 0)
        gone = max(0, self.gone[purchase.lot] - purchase.shortfall)
        missing = min(amount - part, gone)
        if self.stops_at_zero:
            missing += max(0, amount - part - missing - others)
        purchase.shortfall += missing
        if amount == missing:
            return
        row = rows.pop(0)
        taken = [(purchase.lot, part)] if part else []
        debit = self.plain.debit(row.entry_id, amount - missing, now, taken)
        self.debits[row.entry_id] = debit
        purchase.reversals.append(debit)

    def _give(
        self, purchase: PlainPurchase, amount: int, rows: list[Row[Any]], now: datetime
    ) -> None:
        forgiven = min(amount, purchase.shortfall)
        purchase.shortfall -= forgiven
        if amount == forgiven:
            return
        row = rows.pop(0)
        parts = self.plain.restorable(purchase.reversals, amount - forgiven, now)
        purchase.reversals.append(amount - forgiven)
        for lot, part in parts:
            self.plain.lots[lot].left += part
        rest = amount - forgiven - sum(part for _lot, part in parts)
        if rest:
            expires_at = now + timedelta(days=RESTORED_VALID_DAYS)
            restored = PlainLot(row.lot_id, rest, len(self.plain.lots), source="refund")
            restored.expires_at = expires_at
            self.plain.lots[restored.name] = restored
        self.plain.pay(now)


ModelUpdate = Callable[[list[Any], datetime], None]


@dataclass
class Histories:
    """Many histories of one business, a step of each at a time."""

    shop: Shop
    all: list[History]
    random: random.Random

    @classmethod
    def open(cls, shop: Shop, count: int, seed: int, *, stops_at_zero: bool) -> "Histories":
        change = BusinessChange(reversal_policy="stop_at_zero" if stops_at_zero else "debt")
        histories = []
        with shop.sessions.transaction() as conn:
            change_business(conn, shop.business_id, change)
            for number in range(count):
                customer_id = shop.add_customer(conn)
                wallet = wallet_of(conn, shop.business_id, customer_id, "USD")
                own = random.Random(f"{seed} {number}")  # noqa: S311
                history = History(customer_id, wallet.wallet_id, own, stops_at_zero)
                histories.append(history)
        shop.run(
            "CREATE TABLE IF NOT EXISTS known_versions (wallet_id text PRIMARY KEY, known int)"
        )
        shop.run(
            "INSERT INTO usage_batches (shard, epoch, first_stream_id, last_stream_id,"
            " posted_count, duplicate_count, refused_count, unmetered_count, replayed_count)"
            " VALUES (999, 'histories', '0-1', '0-1', 0, 0, 0, 0, 0)"
        )
        return cls(shop, histories, random.Random(seed))  # noqa: S311

    def step(self) -> None:
        """Do a step for every wallet; now and then, do a step for all of them together."""
        self.shop.run(KNOW_VERSIONS)
        updates: dict[WalletId, ModelUpdate] = {}
        postings: list[Posting] = []
        with self.shop.sessions.transaction() as conn:
            ((batch_id,),) = conn.exec_driver_sql(BATCH)
            for history in self.all:
                made = self._bulk(history, batch_id)
                if made is not None:
                    posting, updates[history.wallet_id] = made
                    postings.append(posting)
            post(conn, postings)
        for history in self.all:
            if history.wallet_id not in updates:
                with self.shop.sessions.transaction() as conn:
                    updates[history.wallet_id] = self._alone(conn, history)
        self._update_models(updates)
        if self.random.random() < 0.4:
            self._pass_a_day()
        if self.random.random() < 0.3:
            self._expire()

    def _update_models(self, updates: dict[WalletId, ModelUpdate]) -> None:
        rows: dict[WalletId, list[Row[Any]]] = {}
        for row in self._rows(NEW_ENTRIES):
            rows.setdefault(row.wallet_id, []).append(row)
        now = utc_now()
        for wallet_id, update in updates.items():
            update(rows.get(wallet_id, []), now)

    # --- steps that are posted together ----------------------------------------------------------

    def _bulk(self, history: History, batch_id: Any) -> tuple[Posting, ModelUpdate] | None:
        chosen = history.random.random()
        if chosen < 0.2:
            return self._credit(history)
        return self._usage(history, batch_id) if chosen < 0.6 else None

    def _credit(self, history: History) -> tuple[Posting, ModelUpdate]:
        days = history.random.choice([None, None, 0.5, 1.5, 2.5])
        terms = LotTerms(
            source=history.random.choice(["paid", "promotional", "manual"]),
            priority=history.random.choice([50, 50, 10]),
            expires_at=None if days is None else utc_now() + timedelta(days=days),
        )
        posting = Posting(
            wallet_id=history.wallet_id,
            kind="manual",
            is_credit=True,
            amount_minor=history.random.randint(1, 100),
            lot_terms=terms,
        )

        def update(rows: list[Row[Any]], now: datetime) -> None:
            (row,) = rows
            history.credited(row, now, source=terms.source, priority=terms.priority,
                             expires_at=terms.expires_at)  # fmt: skip

        return posting, update

    def _usage(self, history: History, batch_id: Any) -> tuple[Posting, ModelUpdate]:
        cost = history.random.randint(0, 60)
        posting = Posting(
            wallet_id=history.wallet_id,
            kind="usage",
            is_credit=False,
            exact_cost=cost,  # type: ignore[arg-type]
            batch_id=batch_id,
        )

        def update(rows: list[Row[Any]], now: datetime) -> None:
            (row,) = rows
            history.debited(row, now, cost)

        return posting, update

    # --- steps of one wallet ---------------------------------------------------------------------

    def _alone(self, conn: Connection, history: History) -> ModelUpdate:
        chosen = history.random.random()
        if chosen < 0.3 or not history.purchases:
            return self._buy(conn, history)
        if chosen < 0.6:
            return self._refund(conn, history)
        if chosen < 0.9 or not history.facts:
            return self._dispute(conn, history)
        return self._repeat(conn, history)

    def _buy(self, conn: Connection, history: History) -> ModelUpdate:
        paid = history.random.randint(1, 120)
        credit = max(1, paid + history.random.choice([0, 0, 20, -paid // 5]))
        days = history.random.choice([None, None, 1, 2])
        terms = Terms(currency="USD", price_minor=paid, credit_minor=credit, valid_days=days)
        made = place(conn, self.shop.business_id, history.customer_id, terms)
        purchase = PlainPurchase(made.purchase_id, f"pay_{made.purchase_id}", credit, paid)
        if history.random.random() < 0.2:
            self._note_refund(conn, history, purchase)
        self._pay(conn, purchase)
        settle_purchase(conn, purchase.purchase_id)
        history.purchases.append(purchase)

        def update(rows: list[Row[Any]], now: datetime) -> None:
            row = rows.pop(0)
            purchase.lot = row.lot_id
            expires_at = None if days is None else now + timedelta(days=days)
            history.credited(row, now, source="paid", expires_at=expires_at)
            history.follow(purchase, rows, now)

        return update

    def _pay(self, conn: Connection, purchase: PlainPurchase) -> None:
        fact = PaymentFact(
            provider="stripe",
            payment_id=purchase.payment_id,
            status="succeeded",
            amount_minor=purchase.paid,
            currency="USD",
            occurred_at=utc_now(),
            purchase_id=purchase.purchase_id,
        )
        note_payment(conn, self.shop.business_id, fact)

    def _refund(self, conn: Connection, history: History) -> ModelUpdate:
        purchase = history.random.choice(history.purchases)
        self._note_refund(conn, history, purchase)
        return self._settle(conn, history, purchase)

    def _note_refund(self, conn: Connection, history: History, purchase: PlainPurchase) -> None:
        amount = history.random.choice([None, history.random.randint(1, purchase.paid)])
        name = f"re_{purchase.purchase_id}_{history.number()}"
        purchase.refunds[name] = amount
        self._note(conn, history, self._fact(purchase, name, "succeeded", amount))

    def _dispute(self, conn: Connection, history: History) -> ModelUpdate:
        purchase = history.random.choice(history.purchases)
        names = [*purchase.disputes, f"dp_{purchase.purchase_id}_{history.number()}"]
        name = history.random.choice(names)
        state, amount = purchase.disputes.get(
            name, ("", history.random.choice([None, history.random.randint(1, purchase.paid)]))
        )
        status: ReversalStatus = history.random.choice(["open", "won", "lost"])
        if status != "open" or state in {"", "open"}:
            purchase.disputes[name] = (status, amount)
        self._note(conn, history, self._fact(purchase, name, status, amount))
        return self._settle(conn, history, purchase)

    def _repeat(self, conn: Connection, history: History) -> ModelUpdate:
        """Repeat an earlier fact: an older fact about a dispute must not replace a newer one."""
        fact = history.random.choice(history.facts)
        (purchase,) = [p for p in history.purchases if p.payment_id == fact.payment_id]
        self._pay(conn, purchase)
        note_reversal(conn, self.shop.business_id, fact)
        return self._settle(conn, history, purchase)

    def _fact(
        self, purchase: PlainPurchase, name: str, status: ReversalStatus, amount: int | None
    ) -> ReversalFact:
        return ReversalFact(
            provider="stripe",
            kind="refund" if name.startswith("re_") else "dispute",
            reversal_id=name,
            payment_id=purchase.payment_id,
            status=status,
            occurred_at=utc_now(),
            amount_minor=amount,
        )

    def _note(self, conn: Connection, history: History, fact: ReversalFact) -> None:
        note_reversal(conn, self.shop.business_id, fact)
        history.facts.append(fact)

    def _settle(self, conn: Connection, history: History, purchase: PlainPurchase) -> ModelUpdate:
        settle_purchase(conn, purchase.purchase_id)
        return lambda rows, now: history.follow(purchase, rows, now)

    # --- steps of all wallets --------------------------------------------------------------------

    def _pass_a_day(self) -> None:
        self.shop.pass_days(1)
        for history in self.all:
            for lot in history.plain.lots.values():
                if lot.expires_at is not None:
                    lot.expires_at -= timedelta(days=1)

    def _expire(self) -> None:
        self.shop.run(KNOW_VERSIONS)
        expire_credit(self.shop.sessions.transaction)
        of = {history.wallet_id: history for history in self.all}
        now = utc_now()
        for row in self._rows(NEW_ENTRIES):
            of[row.wallet_id].expired(row, now)
        assert [h for h in self.all if h.plain.expired(now)] == []

    # --- the check -------------------------------------------------------------------------------

    def check(self) -> None:
        """Compare lots, balances and the payment of each debit with the models."""
        lots = {(row.wallet_id, row.lot_id): row.left_minor for row in self._rows(LOTS)}
        assert lots == {
            (history.wallet_id, name): lot.left
            for history in self.all
            for name, lot in history.plain.lots.items()
        }
        wallets = {row.wallet_id: tuple(row)[1:] for row in self._rows(WALLETS)}
        for history in self.all:
            plain = history.plain
            assert wallets[history.wallet_id] == (plain.balance, plain.frozen, plain.debt)
        paid: dict[str, Counter[str]] = {}
        for row in self._rows(ALLOCATIONS):
            paid.setdefault(row.entry_id, Counter())[row.lot_id] = row.amount_minor
        due = dict(self._paid())
        off = {name: (paid.get(name), due.get(name)) for name in paid.keys() | due.keys()}
        wrong = {name: pair for name, pair in off.items() if pair[0] != pair[1]}
        assert not wrong, wrong

    def _paid(self) -> Iterator[tuple[str, Counter[str]]]:
        for history in self.all:
            for name, debit in history.debits.items():
                if debit.paid:
                    yield name, debit.paid

    def _rows(self, statement: str) -> list[Row[Any]]:
        with self.shop.sessions.snapshot() as conn:
            query = statement.format(business=self.shop.business_id)
            return list(conn.exec_driver_sql(query))
