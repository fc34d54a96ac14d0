"""Credit and debit by hand: once per key and never beyond the balance, also under concurrency."""

import random
from collections.abc import Iterator
from decimal import ROUND_UP, Context, localcontext
from typing import Any

import pytest
from pydantic import ValidationError

from metering.buffer.stream import UsageBuffer
from metering.errors import (
    BalanceOutOfRangeError,
    IdempotencyConflictError,
    InsufficientFundsError,
    NotFoundError,
    UnsupportedCurrencyError,
)
from metering.ids import CustomerId
from metering.ledger.entry import Posting
from metering.ledger.manual import Entered, ManualEntry, enter
from metering.ledger.post import post
from metering.ledger.wallets import Overdraft, set_overdraft
from metering.money import INT64_MAX
from support.tenant import Shop, at_once, pool_of, shared_database
from support.tiers import of_tier
from worker.session import Sessions


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "manual_entries") as name:
        yield servers.url_of(name)


def request(**changes: object) -> ManualEntry:
    return ManualEntry.model_validate(
        {"amount": 100, "currency": "USD", "entry_type": "credit", **changes}
    )


def entered(
    shop: Shop, entry_request: ManualEntry, customer: int = 0, sessions: Sessions | None = None
) -> Entered:
    with (sessions or shop.sessions).transaction() as conn:
        return enter(conn, shop.business_id, shop.customers[customer], entry_request)


def balances(shop: Shop) -> list[tuple[Any, ...]]:
    """Balance and version of each wallet of the business."""
    return list(
        shop.rows(
            "SELECT balance_minor, version FROM wallets"
            f" WHERE business_id = '{shop.business_id}' ORDER BY wallet_id"
        )
    )


@pytest.fixture
def two(sessions: Sessions, buffer: UsageBuffer) -> Shop:
    """A business with two customers."""
    return Shop.open(sessions, buffer, customers=2)


def test_a_credit_and_a_debit_move_the_balance_and_keep_their_reason(shop: Shop) -> None:
    shop.enter(100, reason="welcome")
    shop.enter(30, debit=True, reason="misuse")

    assert [(e.amount_minor, e.is_credit, e.after_minor, e.reason) for e in shop.entries()] == [
        (30, False, 70, "misuse"),
        (100, True, 100, "welcome"),
    ]
    assert (shop.wallet().balance_minor, shop.faults()) == (70, [])


def test_each_currency_has_a_balance_of_its_own(shop: Shop) -> None:
    shop.enter(100)
    shop.enter(900, currency="INR")

    found = [shop.wallet(currency=currency).balance_minor for currency in ("USD", "INR")]
    assert found == [100, 900]


def test_the_fields_of_an_entry_are_stored_unchanged(shop: Shop) -> None:
    odd = "tab\t, line\n, \\N, back\\slash, \u20b9, \U0001f680"
    entered(
        shop,
        request(reason=odd, reference=odd, idempotency_key=odd, metadata={"b": odd, "a": 0.5}),
    )

    (entry,) = shop.entries()
    assert (entry.reason, entry.reference, entry.idempotency_key) == (odd, odd, odd)
    assert shop.faults() == []


def test_the_same_request_again_is_answered_with_the_first_entry(shop: Shop) -> None:
    first = shop.enter(100, key="k")
    again = shop.enter(100, key="k")

    assert (again.entry_id, first.replayed, again.replayed) == (first.entry_id, False, True)
    assert shop.wallet().balance_minor == 100


def test_a_repeated_debit_is_answered_though_the_balance_no_longer_covers_it(shop: Shop) -> None:
    shop.enter(100)
    first = shop.enter(100, debit=True, key="k")

    assert shop.enter(100, debit=True, key="k").entry_id == first.entry_id


def test_a_refused_debit_may_be_tried_again_with_its_key(shop: Shop) -> None:
    with pytest.raises(InsufficientFundsError):
        shop.enter(100, debit=True, key="k")
    shop.enter(100)

    assert not shop.enter(100, debit=True, key="k").replayed


def test_without_a_key_every_request_makes_an_entry(shop: Shop) -> None:
    shop.enter(100)
    shop.enter(100)

    assert shop.wallet().balance_minor == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": 101},
        {"currency": "INR"},
        {"entry_type": "debit"},
        {"reason": "other"},
        {"reference": "other"},
        {"metadata": {"a": 1}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_key_with_other_content_is_a_conflict_and_writes_nothing(
    shop: Shop, changes: dict[str, object]
) -> None:
    entered(shop, request(idempotency_key="k"))
    before = balances(shop)

    with pytest.raises(IdempotencyConflictError):
        entered(shop, request(idempotency_key="k", **changes))

    assert balances(shop) == before


def test_a_key_with_another_customer_is_a_conflict(two: Shop) -> None:
    two.enter(100, key="k", customer=0)

    with pytest.raises(IdempotencyConflictError):
        two.enter(100, key="k", customer=1)


def test_two_businesses_may_use_the_same_key(sessions: Sessions, buffer: UsageBuffer) -> None:
    shops = [Shop.open(sessions, buffer, name=name) for name in ("Acme", "Bolt")]

    found = [shop.enter(100, key="k").replayed for shop in shops]

    assert found == [False, False]


def test_fifty_requests_at_once_with_one_key_write_one_entry(shop: Shop) -> None:
    entry_request = request(idempotency_key="k")

    with pool_of(shop.sessions, 50) as many:
        found = at_once(*[lambda: entered(shop, entry_request, sessions=many)] * 50)

    answers = [each for each in found if isinstance(each, Entered)]
    assert len(answers) == 50, found
    assert len({answer.entry_id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert (shop.wallet().balance_minor, shop.faults()) == (100, [])


def test_one_key_for_two_wallets_at_once_writes_one_entry_and_one_conflicts(
    two: Shop,
) -> None:
    entry_request = request(idempotency_key="k")

    found = at_once(
        lambda: entered(two, entry_request, 0),
        lambda: entered(two, entry_request, 1),
    )

    assert sorted(type(each).__name__ for each in found) == ["Entered", "IdempotencyConflictError"]
    assert sum(balance for balance, _version in balances(two)) == 100


def test_a_debit_may_take_the_last_cent_but_no_more(shop: Shop) -> None:
    shop.enter(100)
    shop.enter(100, debit=True)

    with pytest.raises(InsufficientFundsError):
        shop.enter(1, debit=True)

    assert (shop.wallet().balance_minor, shop.wallet().version) == (0, 2)


def test_only_one_of_two_debits_at_once_gets_the_last_cent(shop: Shop) -> None:
    shop.enter(1)

    found = at_once(*[lambda: shop.enter(1, debit=True)] * 2)

    assert sorted(type(each).__name__ for each in found) == ["Entered", "InsufficientFundsError"]
    assert (shop.wallet().balance_minor, shop.wallet().version) == (0, 2)


def test_a_debit_may_go_below_zero_up_to_the_overdraft(shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        new = Overdraft(limit=50)
        set_overdraft(conn, shop.business_id, shop.customers[0], "USD", new)
    shop.enter(50, debit=True)

    with pytest.raises(InsufficientFundsError):
        shop.enter(1, debit=True)

    assert shop.wallet().balance_minor == -50


def test_credits_and_debits_of_eight_threads_add_up_exactly(shop: Shop) -> None:
    shop.enter(10_000)
    amounts = [
        random.Random(n).choices(range(-50, 51), k=20)  # noqa: S311 - to be repeatable
        for n in range(8)
    ]

    def work(mine: list[int]) -> int:
        for amount in filter(None, mine):
            entered(
                shop,
                request(amount=abs(amount), entry_type="credit" if amount > 0 else "debit"),
                sessions=many,
            )
        return sum(mine)

    with pool_of(shop.sessions, 8) as many:
        found = at_once(*[lambda mine=mine: work(mine) for mine in amounts])

    assert found == [sum(mine) for mine in amounts]
    assert shop.wallet().balance_minor == 10_000 + sum(map(sum, amounts))
    assert shop.faults() == []


def test_postings_to_many_wallets_in_opposite_order_never_deadlock(
    sessions: Sessions, buffer: UsageBuffer
) -> None:
    rounds = of_tier(30, 100)
    shop = Shop.open(sessions, buffer, customers=3)
    wallet_ids = [
        shop.wallet(n, currency).wallet_id for n in range(3) for currency in ("USD", "INR")
    ]

    def work(number: int) -> int:
        order = random.Random(number)  # noqa: S311 - to be repeatable
        for _ in range(rounds):
            some = order.sample(wallet_ids, 4)
            with many.transaction() as conn:
                post(
                    conn,
                    [
                        Posting(wallet_id=name, kind="manual", is_credit=True, amount_minor=number)
                        for name in some
                    ],
                )
        return 4 * rounds * number

    with pool_of(sessions, 5) as many:
        found = at_once(*[lambda n=n: work(n) for n in range(1, 6)])

    assert found == [4 * rounds * number for number in range(1, 6)]
    sums = [sum(column) for column in zip(*balances(shop), strict=True)]
    assert sums == [60 * rounds, 20 * rounds]
    assert shop.faults() == []


def test_a_failed_transaction_writes_nothing(shop: Shop) -> None:
    def fail() -> None:
        with shop.sessions.transaction() as conn:
            enter(conn, shop.business_id, shop.customers[0], request(idempotency_key="k"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert (shop.wallet().version, shop.faults()) == (0, [])


def test_one_refused_posting_stops_all_postings_of_its_request(two: Shop) -> None:
    def posting(customer: int, *, is_credit: bool) -> Posting:
        return Posting(
            wallet_id=two.wallet(customer).wallet_id,
            kind="manual",
            is_credit=is_credit,
            amount_minor=5,
        )

    postings = [posting(0, is_credit=True), posting(1, is_credit=False)]
    with pytest.raises(InsufficientFundsError), two.sessions.transaction() as conn:
        post(conn, postings)

    assert balances(two) == [(0, 0)] * 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("amount", bad) for bad in (0, -1, 1.5, 1.0, "5", True, None, INT64_MAX + 1)],
        ("currency", ""),
        ("currency", 5),
        ("entry_type", "gift"),
        ("idempotency_key", ""),
        ("idempotency_key", "  "),
        ("idempotency_key", "k" * 256),
        ("idempotency_key", "nul\0"),
        ("reason", "r" * 501),
        ("reason", "nul\0"),
        ("reference", "r" * 256),
        ("reference", "nul\0"),
        ("metadata", {"a": float("nan")}),
        ("metadata", {"a": {"b": 1}}),
        ("metadata", {"a b": 1}),
        ("metadata", {"a": 2**64}),
        ("metadata", {f"k{n}": 1 for n in range(51)}),
        ("other", 1),
    ],
    ids=str,
)
def test_bad_input_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        request(**{field: value})

    assert {problem["loc"][0] for problem in refused.value.errors()} == {field}


def test_the_largest_amount_is_accepted_once_and_the_next_cent_is_refused(shop: Shop) -> None:
    shop.enter(INT64_MAX)

    with pytest.raises(Exception, match="64-bit"):
        shop.enter(1)

    assert shop.wallet().balance_minor == INT64_MAX


def test_spent_credit_counts_towards_the_largest_amount(shop: Shop) -> None:
    shop.enter(INT64_MAX)
    shop.enter(1, debit=True)

    with pytest.raises(BalanceOutOfRangeError):
        shop.enter(1)

    assert (shop.wallet().balance_minor, shop.faults()) == (INT64_MAX - 1, [])


def test_the_error_of_an_unknown_currency_lists_the_known_ones(shop: Shop) -> None:
    with pytest.raises(UnsupportedCurrencyError, match="INR, USD"):
        entered(shop, request(currency="EUR"))


def test_an_unknown_customer_is_not_found(shop: Shop) -> None:
    shop.customers.append(CustomerId("cus_nobody"))

    with pytest.raises(NotFoundError):
        entered(shop, request(), customer=1)


def test_a_customer_of_another_business_is_not_found(
    sessions: Sessions, buffer: UsageBuffer
) -> None:
    ours, theirs = (Shop.open(sessions, buffer, name=name) for name in ("Acme", "Bolt"))
    ours.customers = theirs.customers

    with pytest.raises(NotFoundError):
        ours.enter(100)


def test_the_host_s_decimal_context_changes_no_balance(shop: Shop) -> None:
    with localcontext(Context(prec=3, rounding=ROUND_UP, traps=[])):
        shop.enter(123_456_789)
        shop.enter(12_345_678, debit=True)

    assert (shop.wallet().balance_minor, shop.faults()) == (111_111_111, [])
