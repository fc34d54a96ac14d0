"""A refund gives a debit back to the lots that paid for it: each part once, never too much."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from metering.buffer.stream import UsageBuffer
from metering.errors import (
    IdempotencyConflictError,
    InsufficientFundsError,
    NotFoundError,
    NotRefundableError,
    RefundExceedsDebitError,
)
from metering.ids import EntryId
from metering.ledger.entry import Kind, LotTerms, Posting
from metering.ledger.lots.restore import RESTORED_VALID_DAYS
from metering.ledger.manual import Entered
from metering.ledger.post import post
from metering.purchase.refund import DebitRefund, refund_debit
from support.tenant import Shop, at_once, pool_of, shared_database
from support.tiers import of_tier
from worker.session import Sessions

NEVER_SOON = timedelta(days=365)


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "refunds") as name:
        yield servers.url_of(name)


def write(
    shop: Shop,
    amount: int,
    *,
    kind: Kind = "manual",
    is_credit: bool = False,
    terms: LotTerms | None = None,
) -> EntryId:
    """Write an entry that may leave a debt; return its id."""
    posting = Posting(
        wallet_id=shop.wallet().wallet_id,
        kind=kind,
        is_credit=is_credit,
        amount_minor=amount,
        lot_terms=terms or LotTerms(),
        may_owe=not is_credit,
    )
    with shop.sessions.transaction() as conn:
        (entry,) = post(conn, [posting])
    return entry.entry_id


def credit(shop: Shop, amount: int, *, priority: int = 50, ends: bool = False) -> str:
    """Credit a lot that expires some day or never; return the lot's id."""
    with shop.sessions.transaction() as conn:
        now = conn.execute(text("SELECT now()")).scalar_one()
    terms = LotTerms(priority=priority, expires_at=now + NEVER_SOON if ends else None)
    entry_id = write(shop, amount, is_credit=True, terms=terms)
    ((lot_id,),) = shop.rows(f"SELECT lot_id FROM credit_lots WHERE entry_id = '{entry_id}'")
    return str(lot_id)


def lapse(shop: Shop, lot_id: str) -> None:
    """Set the expiry of a lot to a moment ago."""
    with shop.sessions.transaction() as conn:
        for statement in (
            "UPDATE credit_lots SET expires_at = now() - interval '1 s' WHERE lot_id = :lot_id",
            "UPDATE wallets SET lot_until = now() - interval '1 s' WHERE lot_id = :lot_id",
        ):
            conn.execute(text(statement), {"lot_id": lot_id})


def lots(shop: Shop) -> dict[str, int]:
    """The amount left of each lot, oldest first."""
    rows = shop.rows(
        "SELECT l.lot_id, CASE WHEN w.lot_id = l.lot_id THEN w.lot_left_minor"
        " ELSE l.remaining_minor END FROM credit_lots l JOIN wallets w USING (wallet_id)"
        f" WHERE l.business_id = '{shop.business_id}' ORDER BY l.created_at, l.lot_id"
    )
    return {str(lot_id): int(str(left)) for lot_id, left in rows}


def refund(
    shop: Shop,
    entry_id: EntryId,
    amount: int | None = None,
    *,
    key: str | None = None,
    customer: int = 0,
    sessions: Sessions | None = None,
) -> Entered:
    request = DebitRefund(amount=amount, reason="the service failed", idempotency_key=key)
    with (sessions or shop.sessions).transaction() as conn:
        return refund_debit(conn, shop.business_id, shop.customers[customer], entry_id, request)


def owed(shop: Shop) -> int:
    wallet = shop.wallet()
    return wallet.debited_minor - wallet.covered_minor


@pytest.fixture
def two(sessions: Sessions, buffer: UsageBuffer) -> Shop:
    """A business with two customers."""
    return Shop.open(sessions, buffer, customers=2)


def test_a_refund_fills_the_lot_and_names_the_debit(shop: Shop) -> None:
    lot = credit(shop, 100)
    debit = write(shop, 60)

    entry_id = refund(shop, debit).entry_id

    entry = shop.entries()[0]
    assert (entry.entry_id, entry.kind, entry.event_type) == (
        entry_id,
        "refund",
        "merchant_adjustment",
    )
    assert (entry.reference, entry.reason, entry.amount_minor) == (debit, "the service failed", 60)
    assert lots(shop) == {lot: 100}
    assert shop.faults() == []


@pytest.mark.parametrize("kind", ["manual", "correction", "checkout"])
def test_every_kind_of_debit_for_a_service_can_be_refunded(shop: Shop, kind: Kind) -> None:
    credit(shop, 100)

    refund(shop, write(shop, 60, kind=kind))

    assert shop.wallet().balance_minor == 100


def test_a_refund_of_usage_does_not_charge_its_event_again(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    lot = credit(shop, 100)
    shop.charge(30)

    refund(shop, shop.entries()[0].entry_id)

    assert lots(shop) == {lot: 100}
    assert shop.faults() == []


def test_the_lot_that_was_consumed_last_is_filled_first(shop: Shop) -> None:
    first, second = credit(shop, 50, priority=10), credit(shop, 50)
    debit = write(shop, 80)

    refund(shop, debit, 40)

    assert lots(shop) == {first: 10, second: 50}
    assert shop.faults() == []


def test_partial_refunds_add_up_to_the_debit_and_no_more(shop: Shop) -> None:
    lot = credit(shop, 100)
    debit = write(shop, 60)
    refund(shop, debit, 25)
    refund(shop, debit, 34)

    with pytest.raises(RefundExceedsDebitError, match="1 of the 60"):
        refund(shop, debit, 2)
    refund(shop, debit)

    assert lots(shop) == {lot: 100}
    assert shop.faults() == []


def test_a_refunded_debit_has_nothing_left_to_refund(shop: Shop) -> None:
    credit(shop, 100)
    debit = write(shop, 60)
    refund(shop, debit)

    with pytest.raises(RefundExceedsDebitError, match="0 of the 60"):
        refund(shop, debit)

    assert shop.wallet().version == 3


def test_usage_below_a_minor_unit_has_nothing_to_refund(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "0.1"})
    shop.charge(1)

    with pytest.raises(RefundExceedsDebitError):
        refund(shop, shop.entries()[0].entry_id)


def test_a_refund_into_an_expired_lot_makes_a_new_lot_for_a_while(shop: Shop) -> None:
    old = credit(shop, 100, ends=True)
    debit = write(shop, 60)
    lapse(shop, old)

    refund(shop, debit)

    ((source, amount, valid),) = shop.rows(
        "SELECT source, amount_minor, expires_at - created_at FROM credit_lots"
        f" WHERE business_id = '{shop.business_id}' AND lot_id <> '{old}'"
    )
    assert (source, amount) == ("refund", 60)
    assert isinstance(valid, timedelta)
    assert abs(valid - timedelta(days=RESTORED_VALID_DAYS)) < timedelta(minutes=1)
    assert lots(shop)[old] == 40
    assert shop.faults() == []


def test_the_part_of_an_expired_lot_is_given_back_once_and_the_other_lot_gets_its_part(
    shop: Shop,
) -> None:
    stays, ends = credit(shop, 40), credit(shop, 60, priority=60, ends=True)
    debit = write(shop, 100)
    lapse(shop, ends)

    refund(shop, debit, 60)
    refund(shop, debit, 40)

    assert list(lots(shop).values()) == [40, 0, 60]
    assert lots(shop)[stays] == 40
    assert shop.faults() == []


def test_a_refund_pays_debt_before_it_fills_lots(shop: Shop) -> None:
    lot = credit(shop, 50)
    debit = write(shop, 80)
    assert owed(shop) == 30

    refund(shop, debit, 50)

    assert (owed(shop), lots(shop)[lot]) == (0, 20)
    assert shop.faults() == []


def test_a_lot_that_paid_the_debt_later_gets_the_refund(shop: Shop) -> None:
    first = credit(shop, 50)
    debit = write(shop, 80)
    second = credit(shop, 100)

    refund(shop, debit, 40)

    assert lots(shop) == {first: 10, second: 100}
    assert shop.faults() == []


def test_a_refund_that_paid_debt_does_not_change_the_next_refund(shop: Shop) -> None:
    lot = credit(shop, 60)
    debit = write(shop, 100)
    refund(shop, debit, 40)

    refund(shop, debit, 60)

    assert lots(shop)[lot] == 60
    assert shop.wallet().balance_minor == 60
    assert shop.faults() == []


def test_a_refilled_lot_is_consumed_again(shop: Shop) -> None:
    lot = credit(shop, 100)
    refund(shop, write(shop, 60))
    again = write(shop, 100)

    refund(shop, again, 30)

    assert lots(shop) == {lot: 30}
    assert shop.faults() == []


def place(shop: Shop, entry_id: EntryId, position: int | None) -> None:
    """Set the position of a debit; None for a debit from before there were lots."""
    with shop.sessions.transaction() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(
            text("UPDATE ledger_entries SET debited_before_minor = :at WHERE entry_id = :entry_id"),
            {"at": position, "entry_id": entry_id},
        )


def test_a_refund_of_a_debit_from_before_there_were_lots_does_not_expire(shop: Shop) -> None:
    old = credit(shop, 100)
    debit = write(shop, 60)
    place(shop, debit, None)

    refund(shop, debit)

    assert shop.rows(
        "SELECT source, amount_minor, expires_at FROM credit_lots"
        f" WHERE business_id = '{shop.business_id}' AND lot_id <> '{old}'"
    ) == [("refund", 60, None)]
    place(shop, debit, 0)
    assert shop.faults() == []


def test_credits_and_debits_without_a_service_are_not_refunded(shop: Shop) -> None:
    credit(shop, 100)
    taken_back = write(shop, 60, kind="reversal")
    given = shop.entries()[-1].entry_id

    for entry_id in (taken_back, given):
        with pytest.raises(NotRefundableError, match="entry_id"):
            refund(shop, entry_id)

    assert shop.wallet().version == 2


def test_a_debit_of_another_customer_is_not_found(two: Shop) -> None:
    two.enter(100)
    debit = two.enter(60, debit=True).entry_id

    with pytest.raises(NotFoundError):
        refund(two, debit, customer=1)


def test_the_same_key_again_is_answered_with_the_first_refund(shop: Shop) -> None:
    credit(shop, 100)
    debit = write(shop, 60)

    found = [refund(shop, debit, key="k") for _ in range(2)]

    assert [each.replayed for each in found] == [False, True]
    assert len({each.entry_id for each in found}) == 1
    assert shop.wallet().balance_minor == 100


def test_a_key_with_another_amount_debit_or_request_is_a_conflict(
    shop: Shop,
) -> None:
    shop.enter(100, key="of a credit")
    debits = [write(shop, 30), write(shop, 30)]
    refund(shop, debits[0], 10, key="k")

    for entry_id, amount, key in (
        (debits[0], 11, "k"),
        (debits[0], None, "k"),
        (debits[1], 10, "k"),
        (debits[0], 10, "of a credit"),
    ):
        with pytest.raises(IdempotencyConflictError):
            refund(shop, entry_id, amount, key=key)

    assert shop.wallet().balance_minor == 50


def test_many_partial_refunds_at_once_give_back_no_more_than_the_debit(shop: Shop) -> None:
    credit(shop, 100)
    debit = write(shop, 60)

    with pool_of(shop.sessions, 10) as many:
        found = at_once(*[lambda: refund(shop, debit, 11, sessions=many)] * 10)

    kinds = sorted(type(each).__name__ for each in found)
    assert kinds == ["Entered"] * 5 + ["RefundExceedsDebitError"] * 5
    assert shop.wallet().balance_minor == 95
    assert shop.faults() == []


# --- any history ----------------------------------------------------------------------------------

Step = tuple[Literal["credit", "debit", "owe", "usage", "lapse", "refund"], int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["credit", "debit", "owe", "usage", "lapse", "refund", "refund"]),
        st.integers(1, 60),
        st.integers(0, 5),
    ),
    min_size=10,
    max_size=24,
)


@dataclass
class History:
    """One wallet, and its expected entries."""

    shop: Shop
    balance: int = 0
    # The refundable rest of each debit, and the expired lots with their rest.
    debits: dict[EntryId, int] = field(default_factory=dict)
    ending: list[str] = field(default_factory=list)
    lapsed: dict[str, int] = field(default_factory=dict)

    def take(self, step: Step) -> None:
        kind, amount, choice = step
        if kind == "credit":
            lot_id = credit(self.shop, amount, priority=40 + choice * 5, ends=choice % 2 == 0)
            self.balance += amount
            self.ending += [lot_id] if choice % 2 == 0 else []
        elif kind == "lapse" and self.ending:
            lot_id = self.ending.pop(choice % len(self.ending))
            lapse(self.shop, lot_id)
            self.lapsed[lot_id] = lots(self.shop)[lot_id]
        elif kind == "refund" and self.debits:
            debit = list(self.debits)[choice % len(self.debits)]
            self.refund(debit, None if choice == 0 else amount // 3 + 1)
        elif kind in {"debit", "owe", "usage"}:
            self.debit(kind, amount)

    def debit(self, kind: str, amount: int) -> None:
        if kind == "debit":
            try:
                entry_id = self.shop.enter(amount, debit=True).entry_id
            except InsufficientFundsError:
                return
        elif kind == "owe":
            entry_id = write(self.shop, amount, kind="correction")
        else:
            self.shop.charge(amount)
            entry_id = self.shop.entries()[0].entry_id
        self.balance -= amount
        self.debits[entry_id] = amount

    def refund(self, debit: EntryId, amount: int | None) -> None:
        left = self.debits[debit]
        refunded = left if amount is None else amount
        if not 0 < refunded <= left:
            with pytest.raises(RefundExceedsDebitError):
                refund(self.shop, debit, amount)
            return
        refund(self.shop, debit, amount)
        self.debits[debit] -= refunded
        self.balance += refunded

    def check(self) -> None:
        now = lots(self.shop)
        over = self.shop.rows(
            "SELECT d.entry_id FROM ledger_entries d JOIN ledger_entries r"
            " ON r.reference = d.entry_id AND r.kind = 'refund' AND r.is_credit"
            f" WHERE d.business_id = '{self.shop.business_id}'"
            " GROUP BY d.entry_id, d.amount_minor HAVING sum(r.amount_minor) > d.amount_minor"
        )
        assert over == []
        assert (
            self.shop.wallet().balance_minor == self.balance == sum(now.values()) - owed(self.shop)
        )
        assert {lot_id: now[lot_id] for lot_id in self.lapsed} == self.lapsed
        assert self.shop.faults() == []


def test_every_history_of_credits_debits_and_refunds_is_sound(
    sessions: Sessions, buffer: UsageBuffer
) -> None:
    @settings(
        max_examples=of_tier(10, 30),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(STEPS)
    def run(steps: list[Step]) -> None:
        shop = Shop.open(sessions, buffer)
        shop.meter("tokens", {"USD": "1"})
        history = History(shop)
        for step in steps:
            history.take(step)
        history.check()

    run()
