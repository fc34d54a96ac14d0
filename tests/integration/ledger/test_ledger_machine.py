"""Random histories of one business on real Postgres and Redis, against a plain model.

Everything here happens one after the other, so that a failing history can be replayed and
shortened. Other tests cover concurrency.
"""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from itertools import count
from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from metering.buffer.stream import UsageBuffer
from metering.errors import IdempotencyConflictError, InsufficientFundsError
from metering.ids import BatchId, Currency
from metering.ledger.entry import Posting
from metering.ledger.post import post
from metering.low_credit.check import check_all
from metering.low_credit.rules import set_rule
from support.tenant import Shop, event
from support.tiers import of_tier
from worker.session import Sessions

CURRENCIES: Final = ("USD", "INR")
PRICES: Final = {"USD": "0.333333333333", "INR": "21.07"}
POINTS: Final = ("after_copy", "before_commit", "after_commit", "before_trim", "after_trim")

Purse = tuple[int, str]  # which customer, in which currency
purses = st.tuples(st.sampled_from([0, 1]), st.sampled_from(CURRENCIES))
amounts = st.integers(1, 300)
costs = st.decimals(0, 200, places=12)


class KilledError(Exception):
    """Stands for the end of the process."""


@dataclass
class ModelWallet:
    """The expected state of a wallet: exact cost and entries in plain fractions."""

    balance: int = 0
    remainder: Fraction = Fraction(0)
    version: int = 0
    bands: dict[int, int] = field(default_factory=dict)
    low: set[int] = field(default_factory=set)
    crossings: list[tuple[str, int]] = field(default_factory=list)

    def move(self, amount: int) -> None:
        self.balance += amount
        self.version += 1

    def charge(self, cost: Fraction) -> None:
        whole, self.remainder = divmod(self.remainder + cost, 1)
        self.move(-int(whole))

    def look(self) -> None:
        """Note crossings, the highest threshold first, as each transaction does at its end."""
        for threshold in sorted(self.bands, reverse=True):
            if threshold not in self.low and self.balance <= threshold:
                self.low.add(threshold)
                self.crossings.append(("low", threshold))
            elif threshold in self.low and self.balance >= self.bands[threshold]:
                self.low.remove(threshold)
                self.crossings.append(("recovered", threshold))


class LedgerMachine(RuleBasedStateMachine):
    """Two customers with two wallets each; the first pays in USD, the second in INR."""

    def __init__(self, sessions: Sessions, buffer: UsageBuffer) -> None:
        super().__init__()
        self.sessions, self.buffer = sessions, buffer
        self.keys = count(1)
        self.wallets = {
            (customer, currency): ModelWallet() for customer in (0, 1) for currency in CURRENCIES
        }
        self.requests: list[tuple[str, Purse, int]] = []
        self.sent: list[tuple[int, str, int]] = []

    @initialize()
    def open(self) -> None:
        self.shop = Shop.open(self.sessions, self.buffer)
        with self.sessions.transaction() as conn:
            self.shop.add_customer(conn, billing="INR")
        self.shop.meter("tokens", PRICES)
        ((batch_id,),) = self.shop.rows(
            "INSERT INTO usage_batches (shard, epoch, first_stream_id, last_stream_id,"
            " posted_count, duplicate_count, refused_count, unmetered_count, replayed_count)"
            " VALUES (999, 'machine', '0-1', '0-1', 0, 0, 0, 0, 0) RETURNING batch_id"
        )
        assert isinstance(batch_id, int)
        self.batch_id = BatchId(batch_id)
        self.wallet_ids = {purse: self.shop.wallet(*purse).wallet_id for purse in self.wallets}

    def _enter(self, purse: Purse, amount: int, key: str) -> bool:
        """Request an entry; return whether it was a repetition. A negative `amount` is a debit."""
        customer, currency = purse
        return self.shop.enter(
            abs(amount), debit=amount < 0, currency=currency, customer=customer, key=key
        ).replayed

    @rule(purse=purses, amount=amounts)
    def credit(self, purse: Purse, amount: int) -> None:
        key = f"k{next(self.keys)}"

        assert not self._enter(purse, amount, key)

        self.wallets[purse].move(amount)
        self.wallets[purse].look()
        self.requests.append((key, purse, amount))

    @rule(purse=purses, amount=amounts)
    def debit(self, purse: Purse, amount: int) -> None:
        key, model = f"k{next(self.keys)}", self.wallets[purse]
        if model.balance < amount:
            with pytest.raises(InsufficientFundsError):
                self._enter(purse, -amount, key)
            return

        assert not self._enter(purse, -amount, key)

        model.move(-amount)
        model.look()
        self.requests.append((key, purse, -amount))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        key, purse, amount = data.draw(st.sampled_from(self.requests))

        assert self._enter(purse, amount, key)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), other=purses, more=st.integers(0, 2))
    def replay_with_other_content(self, data: st.DataObject, other: Purse, more: int) -> None:
        key, purse, amount = data.draw(st.sampled_from(self.requests))
        if (other, more) == (purse, 0):
            return

        with pytest.raises(IdempotencyConflictError):
            self._enter(other, amount + more if amount > 0 else amount - more, key)

    @rule(batch=st.lists(st.tuples(purses, costs), min_size=1, max_size=4), dies=st.booleans())
    def usage_of_exact_costs(self, batch: list[tuple[Purse, Decimal]], *, dies: bool) -> None:
        with self.sessions.transaction() as conn:
            post(conn, [self._posting(purse, cost) for purse, cost in batch])
            if dies:
                conn.rollback()
                return

        for purse, cost in batch:
            self.wallets[purse].charge(Fraction(cost))
        for purse in {purse for purse, _cost in batch}:
            self.wallets[purse].look()

    def _posting(self, purse: Purse, cost: Decimal) -> Posting:
        return Posting(
            wallet_id=self.wallet_ids[purse],
            kind="usage",
            is_credit=False,
            exact_cost=cost,
            batch_id=self.batch_id,
            event_count=0,
        )

    @rule(
        customer=st.sampled_from([0, 1]),
        tokens=st.lists(st.integers(0, 500), min_size=1, max_size=4),
        point=st.none() | st.sampled_from(POINTS),
    )
    def usage_through_the_drain(self, customer: int, tokens: list[int], point: str | None) -> None:
        fresh = [(customer, f"evt-{next(self.keys)}", amount) for amount in tokens]
        self._send(fresh)

        if point:
            with pytest.raises(KilledError):
                self.shop.drain(checkpoint=lambda name: self._die(at=point, name=name))
        self.shop.drain()

        purse = (customer, CURRENCIES[customer])
        self.wallets[purse].charge(Fraction(PRICES[purse[1]]) * sum(tokens))
        self.wallets[purse].look()
        self.sent += fresh

    def _die(self, *, at: str, name: str) -> None:
        if name == at:
            raise KilledError

    def _send(self, events: list[tuple[int, str, int]]) -> None:
        self.shop.send(
            *(
                event(self.shop.customers[customer], {"tokens": amount}, event_id=event_id)
                for customer, event_id, amount in events
            )
        )

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), more=st.integers(0, 1))
    def usage_sent_again(self, data: st.DataObject, more: int) -> None:
        """The same content is a duplicate, other content a conflict; neither is charged."""
        customer, event_id, amount = data.draw(st.sampled_from(self.sent))
        self._send([(customer, event_id, amount + more)])

        assert self.shop.drain().posted == 0

    @rule(purse=purses, threshold=st.integers(-300, 300), band=st.integers(1, 100))
    def rule_change(self, purse: Purse, threshold: int, band: int) -> None:
        customer, currency = purse
        with self.sessions.transaction() as conn:
            set_rule(
                conn,
                self.shop.business_id,
                Currency(currency),
                threshold,
                customer_id=self.shop.customers[customer],
                recover_at_minor=threshold + band,
            )

        self.wallets[purse].bands[threshold] = threshold + band

    @rule()
    def scheduled_check(self) -> None:
        check_all(self.sessions.transaction)

        for model in self.wallets.values():
            if model.version:
                model.look()

    @invariant()
    def wallets_are_as_in_the_model(self) -> None:
        rows = self.shop.rows(
            "SELECT wallet_id, balance_minor, remainder, version, alert_sequence FROM wallets"
            f" WHERE business_id = '{self.shop.business_id}'"
        )
        found = {
            wallet_id: (balance, Fraction(Decimal(str(remainder))), version, alerts)
            for wallet_id, balance, remainder, version, alerts in rows
        }
        assert found == {
            self.wallet_ids[purse]: (
                model.balance,
                model.remainder,
                model.version,
                len(model.crossings),
            )
            for purse, model in self.wallets.items()
        }

    def teardown(self) -> None:
        if not hasattr(self, "shop"):
            return
        rows = self.shop.rows(
            "SELECT wallet_id, type, (data->>'threshold_amount')::bigint FROM webhook_events"
            f" WHERE business_id = '{self.shop.business_id}' AND sequence > 0"
        )
        found = Counter(
            (wallet_id, str(kind).removeprefix("credit.balance_"), threshold)
            for wallet_id, kind, threshold in rows
        )
        assert found == Counter(
            (self.wallet_ids[purse], kind, threshold)
            for purse, model in self.wallets.items()
            for kind, threshold in model.crossings
        )
        assert self.shop.faults() == []


def test_every_history_agrees_with_the_model(sessions: Sessions, buffer: UsageBuffer) -> None:
    run_state_machine_as_test(
        lambda: LedgerMachine(sessions, buffer),  # type: ignore[arg-type]  # takes any factory
        settings=settings(
            max_examples=of_tier(5, 10),
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
