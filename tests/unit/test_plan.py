"""From postings to entries, without a database: sums, versions, chain and limits."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_UP, Context, Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import BalanceOutOfRangeError, InsufficientFundsError
from metering.ids import BatchId, BusinessId, Currency, CustomerId, EntryId, WalletId
from metering.ledger.entry import Entry, Kind, Posting, Wallet, chain_digest
from metering.ledger.plan import plan_entries
from metering.money import EXACT, INT64_MAX, UNIT_PRICE_DECIMALS_MAX, ZERO

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
WALLET_ID = WalletId("wal_1")

unit_prices = st.decimals(0, 99_999, places=UNIT_PRICE_DECIMALS_MAX)
quantities = st.decimals(0, 10**12, places=12)
costs = st.builds(EXACT.multiply, unit_prices, quantities)


def wallet(balance_minor: int = 0, overdraft_limit_minor: int = 0, name: str = WALLET_ID) -> Wallet:
    return Wallet(
        wallet_id=WalletId(name),
        business_id=BusinessId("bus_1"),
        customer_id=CustomerId("cus_1"),
        currency=Currency("USD"),
        balance_minor=balance_minor,
        remainder=ZERO,
        version=0,
        chain=b"",
        overdraft_limit_minor=overdraft_limit_minor,
    )


def usage(*exact_costs: Decimal | str, name: str = WALLET_ID) -> Posting:
    """A batch of events on one wallet."""
    total = ZERO
    for cost in exact_costs:
        total = EXACT.add(total, Decimal(cost))
    return Posting(
        wallet_id=WalletId(name),
        kind="usage",
        is_credit=False,
        exact_cost=total,
        batch_id=BatchId(1),
        event_count=len(exact_costs),
    )


def moved(amount_minor: int, kind: Kind = "manual") -> Posting:
    """A credit, or (below zero) a debit."""
    return Posting(
        wallet_id=WALLET_ID, kind=kind, is_credit=amount_minor > 0, amount_minor=abs(amount_minor)
    )


def plan(start: Wallet, *postings: Posting) -> tuple[list[Entry], Wallet]:
    entries, after = plan_entries({start.wallet_id: start}, postings, NOW)
    return entries, after[start.wallet_id]


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[Decimal], list[list[Decimal]]]:
    """The costs of some events, and the same costs cut into batches at random places."""
    events = draw(st.lists(costs, min_size=1, max_size=8))
    cuts = sorted(draw(st.sets(st.integers(1, len(events)), max_size=len(events))))
    batches = [events[a:b] for a, b in zip([0, *cuts], [*cuts, len(events)], strict=True)]
    return events, batches


@given(splits())
def test_the_split_into_batches_changes_neither_total_nor_remainder(
    case: tuple[list[Decimal], list[list[Decimal]]],
) -> None:
    events, batches = case

    merged = plan(wallet(), usage(*events))[1]
    split = plan(wallet(), *(usage(*batch) for batch in batches))[1]

    assert (split.balance_minor, split.remainder) == (merged.balance_minor, merged.remainder)


@given(splits())
def test_debit_and_remainder_add_up_to_the_exact_cost(
    case: tuple[list[Decimal], list[list[Decimal]]],
) -> None:
    events, batches = case
    entries, after = plan(wallet(), *(usage(*batch) for batch in batches))

    exact = ZERO
    for cost in events:
        exact = EXACT.add(exact, cost)
    assert 0 <= after.remainder < 1
    assert (
        EXACT.add(Decimal(sum(entry.amount_minor for entry in entries)), after.remainder) == exact
    )


def test_a_batch_that_costs_less_than_a_minor_unit_is_an_entry_of_zero() -> None:
    (entry,), after = plan(wallet(5), usage("0.4"))

    assert (entry.amount_minor, entry.remainder_after) == (0, Decimal("0.4"))
    assert after.balance_minor == 5


def test_a_credit_does_not_change_the_remainder() -> None:
    entries, after = plan(wallet(), usage("0.4"), moved(100), usage("0.6"))

    assert [entry.remainder_after for entry in entries] == [Decimal("0.4"), Decimal("0.4"), 0]
    assert after.balance_minor == 99


def test_a_sum_does_not_depend_on_the_host_s_decimal_context() -> None:
    postings = [usage("1234567.891234567"), usage("0.108765433")]

    with localcontext(Context(prec=3, rounding=ROUND_UP, traps=[])):
        _entries, after = plan(wallet(), *postings)

    assert (after.balance_minor, after.remainder) == (-1234568, 0)


@given(st.lists(st.one_of(st.integers(1, 10**6), costs), max_size=10))
def test_each_entry_continues_the_one_before_it(what: Sequence[int | Decimal]) -> None:
    postings = [moved(x) if isinstance(x, int) else usage(x) for x in what]

    entries, after = plan(wallet(), *postings)

    previous = (0, 0, ZERO, b"")
    for entry in entries:
        assert entry.version == previous[0] + 1
        assert (entry.before_minor, entry.remainder_before) == previous[1:3]
        sign = 1 if entry.is_credit else -1
        assert entry.after_minor == entry.before_minor + sign * entry.amount_minor
        assert entry.chain == chain_digest(previous[3], entry)
        previous = (entry.version, entry.after_minor, entry.remainder_after, entry.chain)
    assert (after.version, after.balance_minor, after.remainder, after.chain) == previous


def test_entries_keep_the_order_of_the_postings_and_are_numbered_per_wallet() -> None:
    wallets = {WalletId(name): wallet(name=name) for name in ("wal_a", "wal_b")}
    names = ["wal_b", "wal_a", "wal_b"]

    entries, _after = plan_entries(wallets, [usage("1", name=name) for name in names], NOW)

    assert [(entry.wallet_id, entry.version) for entry in entries] == [
        ("wal_b", 1),
        ("wal_a", 1),
        ("wal_b", 2),
    ]


def test_planning_does_not_change_the_given_wallets() -> None:
    given_wallets = {WALLET_ID: wallet(10)}

    plan_entries(given_wallets, [moved(-10)], NOW)

    assert given_wallets == {WALLET_ID: wallet(10)}


def test_usage_is_debited_even_below_zero() -> None:
    _entries, after = plan(wallet(1), usage("1000"))

    assert after.balance_minor == -999


@pytest.mark.parametrize("limit_minor", [0, 50])
@pytest.mark.parametrize("kind", ["manual", "correction"])
def test_a_debit_may_use_the_balance_and_all_of_the_overdraft(kind: Kind, limit_minor: int) -> None:
    _entries, after = plan(wallet(100, limit_minor), moved(-100 - limit_minor, kind))

    assert after.balance_minor == -limit_minor


@pytest.mark.parametrize("limit_minor", [0, 50])
@pytest.mark.parametrize("kind", ["manual", "correction"])
def test_a_debit_beyond_the_overdraft_is_refused(kind: Kind, limit_minor: int) -> None:
    with pytest.raises(InsufficientFundsError) as refused:
        plan(wallet(100, limit_minor), moved(-101 - limit_minor, kind))

    assert (refused.value.balance_minor, refused.value.amount_minor) == (100, 101 + limit_minor)


def test_a_wallet_in_debt_accepts_credit() -> None:
    _entries, after = plan(wallet(-100), moved(10))

    assert after.balance_minor == -90


@pytest.mark.parametrize(
    ("balance_minor", "posting"),
    [(INT64_MAX - 1, moved(1)), (1 - INT64_MAX, usage("1.5")), (0, usage(Decimal(INT64_MAX)))],
)
def test_a_balance_may_reach_the_limit_of_64_bits(balance_minor: int, posting: Posting) -> None:
    _entries, after = plan(wallet(balance_minor), posting)

    assert abs(after.balance_minor) == INT64_MAX


@pytest.mark.parametrize(
    ("balance_minor", "posting"),
    [(INT64_MAX, moved(1)), (-INT64_MAX, usage("1")), (0, usage(Decimal(INT64_MAX + 1)))],
)
def test_a_balance_beyond_64_bits_is_refused(balance_minor: int, posting: Posting) -> None:
    with pytest.raises(BalanceOutOfRangeError):
        plan(wallet(balance_minor), posting)


EDITS: dict[str, Any] = {
    "entry_id": EntryId("ent_other"),
    "wallet_id": WalletId("wal_other"),
    "version": 2,
    "business_id": BusinessId("bus_other"),
    "customer_id": CustomerId("cus_other"),
    "currency": Currency("INR"),
    "amount_minor": 8,
    "is_credit": True,
    "before_minor": 1,
    "after_minor": 1,
    "event_type": "refund",
    "kind": "correction",
    "reason": "",
    "reference": "",
    "idempotency_key": "",
    "request_digest": b"",
    "batch_id": None,
    "event_count": 2,
    "exact_cost": Decimal("7.6"),
    "remainder_before": Decimal("0.1"),
    "remainder_after": Decimal("0.6"),
    "metadata_json": '{"a":1}',
    "created_at": datetime(2026, 1, 31, 9, 30, 0, 1, tzinfo=UTC),
    "debited_before_minor": 1,
}


def test_the_next_test_edits_every_field_of_an_entry() -> None:
    assert set(Entry._fields) == {*EDITS, "chain"}


@pytest.mark.parametrize("field", EDITS)
def test_an_edit_of_any_field_changes_the_digest(field: str) -> None:
    (entry,), _after = plan(wallet(), usage("7.5"))

    edited = entry._replace(**{field: EDITS[field]})

    assert chain_digest(b"", edited) != entry.chain


def test_another_previous_entry_changes_the_digest() -> None:
    (entry,), _after = plan(wallet(), usage("7.5"))

    assert chain_digest(b"\1", entry) != chain_digest(b"", entry)
