"""Low-credit alerts: one per crossing, armed again by recovery, in the transaction of the cause."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from metering.errors import InvalidInputError, NotFoundError
from metering.ids import Currency, CustomerId, LotId, RuleId
from metering.ledger.entry import Posting
from metering.ledger.lots.freeze import freeze_lot
from metering.ledger.post import lock_wallets, post
from metering.ledger.wallets import Overdraft, set_overdraft
from metering.low_credit.check import check_all
from metering.low_credit.rules import delete_rule, list_rules, set_rule
from metering.money import INT64_MAX
from metering.purchase.expire import expire_credit
from support.tenant import Shop, at_once, event, pool_of, shared_database
from worker.session import Sessions

USD = Currency("USD")
LOW, RECOVERED = "credit.balance_low", "credit.balance_recovered"
Alert = tuple[Any, ...]


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "low_credit") as name:
        yield servers.url_of(name)


def rule(shop: Shop, threshold: int, recover_at: int | None = None, *, own: bool = False) -> RuleId:
    """A default rule for USD, or with `own` a rule of the first customer."""
    with shop.sessions.transaction() as conn:
        return set_rule(
            conn,
            shop.business_id,
            USD,
            threshold,
            customer_id=shop.customers[0] if own else None,
            recover_at_minor=recover_at,
        )


def move(shop: Shop, *amounts: int, sessions: Sessions | None = None) -> None:
    """Post each amount alone: a credit, or (below zero) a debit that may leave a debt."""
    wallet_id = shop.wallet().wallet_id
    with (sessions or shop.sessions).transaction() as conn:
        conn.exec_driver_sql(
            f"UPDATE wallets SET overdraft_limit_minor = 10000 WHERE wallet_id = '{wallet_id}'"
        )
        for amount in amounts:
            posting = Posting(
                wallet_id=wallet_id,
                kind="correction",
                is_credit=amount > 0,
                amount_minor=abs(amount),
            )
            post(conn, [posting])


def alerts(shop: Shop) -> list[Alert]:
    """Type, threshold and balance of each alert of the business, in order per wallet."""
    return list(
        shop.rows(
            "SELECT type, (data->>'threshold_amount')::bigint, (data->>'available_balance')::bigint"
            f" FROM webhook_events WHERE business_id = '{shop.business_id}' AND sequence > 0"
            " ORDER BY wallet_id, sequence"
        )
    )


def test_a_fall_to_the_threshold_is_alerted_once(shop: Shop) -> None:
    rule(shop, 50)

    move(shop, 100, -49, -1, -1, -10)

    assert alerts(shop) == [(LOW, 50, 50)]


def frozen(shop: Shop, lot_id: str, *, is_frozen: bool) -> None:
    with shop.sessions.transaction() as conn:
        freeze_lot(conn, shop.wallet().wallet_id, LotId(lot_id), is_frozen=is_frozen)


def test_frozen_credit_is_alerted_as_low_once_until_it_is_freed(
    shop: Shop,
) -> None:
    rule(shop, 50, 80)
    lot_id = shop.grant(100)

    for is_frozen in (True, True, False, False, True):
        frozen(shop, lot_id, is_frozen=is_frozen)
        check_all(shop.sessions.transaction)

    assert alerts(shop) == [(LOW, 50, 0), (RECOVERED, 50, 100), (LOW, 50, 0)]
    assert shop.faults() == []


def test_a_debit_beside_frozen_credit_crosses_by_the_spendable_credit(shop: Shop) -> None:
    rule(shop, 50)
    frozen(shop, shop.grant(100), is_frozen=True)
    shop.grant(60)

    assert alerts(shop) == [(LOW, 50, 0), (RECOVERED, 50, 60)]
    shop.enter(10, debit=True)
    assert alerts(shop)[2:] == [(LOW, 50, 50)]


def test_expired_credit_is_alerted_as_low_before_the_expiry_is_posted(shop: Shop) -> None:
    rule(shop, 50)
    shop.meter("tokens", {"USD": "1"})
    shop.grant(100, days=1)
    shop.grant(60)
    shop.pass_days(1)

    shop.charge(5)
    assert alerts(shop) == []
    shop.charge(5)

    assert alerts(shop) == [(LOW, 50, 50)]
    expire_credit(shop.sessions.transaction)
    check_all(shop.sessions.transaction)
    assert alerts(shop) == [(LOW, 50, 50)]


@pytest.mark.parametrize("expired", [[10], [10, 20, 30]])
def test_the_check_finds_expired_credit(shop: Shop, expired: list[int]) -> None:
    rule(shop, 50)
    shop.grant(51)
    for amount in expired:
        shop.grant(amount, days=1)
    shop.pass_days(1)
    shop.run(
        "UPDATE credit_lots SET expires_at = NULL WHERE amount_minor = 51"
        f" AND business_id = '{shop.business_id}'"
    )

    check_all(shop.sessions.transaction)
    assert alerts(shop) == []
    shop.enter(1, debit=True)

    assert alerts(shop) == [(LOW, 50, 50)]


def test_a_wallet_locked_by_a_frozen_process_delays_no_other_alert(shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    for customer in (0, 1):
        shop.enter(10, customer=customer)
    rule(shop, 50)

    with pool_of(shop.sessions, 2) as many:
        with many.transaction() as frozen:
            lock_wallets(frozen, {shop.wallet(0).wallet_id})
            check_all(many.transaction)
            assert alerts(shop) == [(LOW, 50, 10)]
        check_all(many.transaction)

    assert alerts(shop) == [(LOW, 50, 10)] * 2


def test_a_check_that_ends_early_is_continued_by_the_next_run(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metering.low_credit.check.PAGE_WALLETS", 1)
    with shop.sessions.transaction() as conn:
        for _ in range(3):
            shop.add_customer(conn)
    for customer in range(4):
        shop.enter(10, customer=customer)
    rule(shop, 50)
    wallets = shop.rows("SELECT count(*) FROM wallets")[0][0]

    counts = [check_all(shop.sessions.transaction, 0) for _ in range(wallets + 1)]

    assert (alerts(shop), max(counts)) == ([(LOW, 50, 10)] * 4, 1)


def test_the_overdraft_does_not_count_as_credit(shop: Shop) -> None:
    rule(shop, 0)
    move(shop, 10)

    with shop.sessions.transaction() as conn:
        new = Overdraft(limit=1000)
        set_overdraft(conn, shop.business_id, shop.customers[0], "USD", new)
    shop.enter(10, debit=True)

    assert alerts(shop) == [(LOW, 0, 0)]


def test_an_alert_names_the_customer_the_balance_and_the_time(shop: Shop) -> None:
    rule(shop, 50, 80)

    move(shop, 100, -60)

    ((data, sequence),) = shop.rows(
        f"SELECT data, sequence FROM webhook_events WHERE business_id = '{shop.business_id}'"
        " AND sequence > 0"
    )
    assert isinstance(data, dict)
    assert data.pop("crossed_at").endswith("Z")
    assert (sequence, data) == (
        1,
        {
            "payload_type": "CreditBalanceLow",
            "customer_id": shop.customers[0],
            "wallet": "USD",
            "currency": "USD",
            "available_balance": 40,
            "threshold_amount": 50,
            "recover_at_amount": 80,
            "sequence": 1,
        },
    )


def test_a_recovery_is_alerted_and_arms_the_rule_again(shop: Shop) -> None:
    rule(shop, 50)

    move(shop, 100, -60, 60, -60)

    assert alerts(shop) == [(LOW, 50, 40), (RECOVERED, 50, 100), (LOW, 50, 40)]


def test_no_alert_is_sent_within_the_band(shop: Shop) -> None:
    rule(shop, 50, 80)

    move(shop, 100, -50, 29, -29, 29, -29, 29, 1, -29, -1)

    assert alerts(shop) == [(LOW, 50, 50), (RECOVERED, 50, 80), (LOW, 50, 50)]


def test_each_threshold_has_its_own_alert_the_highest_first(shop: Shop) -> None:
    for threshold in (10, 100, 50):
        rule(shop, threshold)

    move(shop, 200, -195, 50)

    assert alerts(shop) == [
        (LOW, 100, 5),
        (LOW, 50, 5),
        (LOW, 10, 5),
        (RECOVERED, 50, 55),
        (RECOVERED, 10, 55),
    ]


def test_a_rule_of_the_wallet_replaces_the_defaults(shop: Shop) -> None:
    rule(shop, 50)
    rule(shop, 20, own=True)

    move(shop, 100, -60, -25)

    assert alerts(shop) == [(LOW, 20, 15)]


def test_the_default_applies_again_without_a_rule_of_the_wallet(shop: Shop) -> None:
    rule(shop, 50)
    mine = rule(shop, 20, own=True)
    move(shop, 100, -60)

    with shop.sessions.transaction() as conn:
        delete_rule(conn, shop.business_id, mine)
    check_all(shop.sessions.transaction)

    assert alerts(shop) == [(LOW, 50, 40)]


def test_a_rule_of_one_wallet_does_not_apply_to_another(shop: Shop) -> None:
    rule(shop, 50, own=True)
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)

    shop.enter(10, customer=1)
    shop.enter(10, currency="INR")

    assert alerts(shop) == []


def test_a_wallet_that_never_had_credit_is_not_low(shop: Shop) -> None:
    rule(shop, 50)

    check_all(shop.sessions.transaction)

    assert alerts(shop) == []


def test_a_first_credit_at_or_below_the_threshold_is_low(shop: Shop) -> None:
    rule(shop, 50)

    move(shop, 50)

    assert alerts(shop) == [(LOW, 50, 50)]


def test_drained_usage_causes_alerts(shop: Shop) -> None:
    rule(shop, 50)
    shop.meter("tokens", {"USD": "1"})
    shop.enter(100)
    shop.send(event(shop.customers[0], {"tokens": 70}))

    shop.drain()

    assert alerts(shop) == [(LOW, 50, 30)]


def test_a_rolled_back_posting_sends_no_alert_but_the_next_posting_does(shop: Shop) -> None:
    rule(shop, 50)
    shop.enter(100)
    wallet_id = shop.wallet().wallet_id
    debit = Posting(wallet_id=wallet_id, kind="manual", is_credit=False, amount_minor=60)

    with shop.sessions.transaction() as conn:
        post(conn, [debit])
        conn.rollback()
    before = alerts(shop)
    move(shop, -70)

    assert (before, alerts(shop)) == ([], [(LOW, 50, 30)])


def test_the_alert_is_written_in_the_transaction_of_the_posting(shop: Shop) -> None:
    rule(shop, 50)
    shop.enter(100)
    wallet_id = shop.wallet().wallet_id
    debit = Posting(wallet_id=wallet_id, kind="manual", is_credit=False, amount_minor=60)

    with shop.sessions.transaction() as conn:
        post(conn, [debit])
        found = conn.exec_driver_sql(
            f"SELECT type FROM webhook_events WHERE wallet_id = '{wallet_id}'"
        ).scalars()
        inside, outside = list(found), alerts(shop)

    assert (inside, outside) == ([LOW], [])


def test_the_check_alerts_once_for_a_default_that_was_added_later(shop: Shop) -> None:
    move(shop, 40)
    rule(shop, 50)

    counts = [check_all(shop.sessions.transaction) for _ in range(2)]

    assert (counts, alerts(shop)) == ([1, 0], [(LOW, 50, 40)])


def test_the_check_finds_a_narrowed_band(shop: Shop) -> None:
    rule(shop, 50, 200)
    move(shop, 100, -60, 60)
    rule(shop, 50, 80)

    check_all(shop.sessions.transaction)

    assert alerts(shop) == [(LOW, 50, 40), (RECOVERED, 50, 100)]


def test_checks_at_once_alert_a_crossing_once(shop: Shop) -> None:
    move(shop, 40)
    rule(shop, 50)

    with pool_of(shop.sessions, 6) as many:
        counts = at_once(*[lambda: check_all(many.transaction)] * 6)

    assert sorted(map(str, counts)) == ["0"] * 5 + ["1"]


def test_checks_and_postings_at_once_alert_each_crossing_once_in_order(shop: Shop) -> None:
    move(shop, 100)

    def post_and_check(number: int) -> None:
        for _ in range(8):
            move(shop, -60 - number, sessions=many)
            if number == 0:
                rule(shop, 50)
            check_all(many.transaction)
            move(shop, 60 + number, sessions=many)

    with pool_of(shop.sessions, 8) as many:
        found = at_once(*[lambda n=n: post_and_check(n) for n in range(4)])

    assert found == [None] * 4
    counts = [alert[0] for alert in alerts(shop)]
    assert counts
    assert counts == [(LOW, RECOVERED)[n % 2] for n in range(len(counts))]
    assert shop.faults() == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_walk_has_exactly_the_alerts_of_a_plain_model(shop: Shop, seed: int) -> None:
    bands = {90: 100, 40: 70, 0: 1, -50: 30}
    for threshold, recover_at in bands.items():
        rule(shop, threshold, recover_at)
    walk = random.Random(seed).choices([*range(-30, 0), *range(1, 31)], k=80)  # noqa: S311

    move(shop, *walk)

    expected: list[Alert] = []
    balance, low = 0, set[int]()
    for step in walk:
        balance += step
        for threshold in sorted(bands, reverse=True):
            if threshold not in low and balance <= threshold:
                low.add(threshold)
                expected.append((LOW, threshold, balance))
            elif threshold in low and balance >= bands[threshold]:
                low.remove(threshold)
                expected.append((RECOVERED, threshold, balance))
    assert alerts(shop) == expected


def test_alerts_are_numbered_without_gaps(shop: Shop) -> None:
    rule(shop, 50)
    rule(shop, 20)

    move(shop, 100, -90, 90, -90)

    numbers = shop.rows(
        f"SELECT sequence FROM webhook_events WHERE business_id = '{shop.business_id}'"
        " AND sequence > 0"
        " ORDER BY webhook_event_id, sequence"
    )
    assert sorted(numbers) == [(n,) for n in range(1, 7)]
    assert shop.faults() == []


def test_a_posting_while_its_rule_is_deleted_succeeds_without_an_alert(
    shop: Shop,
) -> None:
    mine = rule(shop, 50)
    move(shop, 100)

    with shop.sessions.transaction() as conn:
        delete_rule(conn, shop.business_id, mine)
        move(shop, -60)

    assert (shop.wallet().balance_minor, alerts(shop)) == (40, [])


def test_the_same_threshold_again_changes_the_band_of_the_rule(shop: Shop) -> None:
    first = rule(shop, 50)
    second = rule(shop, 50, 80)

    with shop.sessions.transaction() as conn:
        (found,) = list_rules(conn, shop.business_id)
    assert (first, found.recover_at_minor) == (second, 80)


@pytest.mark.parametrize(
    ("threshold", "recover_at", "field"),
    [
        (50, 50, "recover_at"),
        (50, 49, "recover_at"),
        (INT64_MAX + 1, None, "threshold"),
        (-INT64_MAX - 1, None, "threshold"),
        (INT64_MAX, None, "recover_at"),
    ],
)
def test_a_bad_band_is_refused_by_its_field(
    shop: Shop, threshold: int, recover_at: int | None, field: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        rule(shop, threshold, recover_at)

    assert [problem.field for problem in refused.value.problems] == [field]


def test_a_rule_for_a_customer_of_another_business_is_not_found(shop: Shop) -> None:
    shop.customers[0] = CustomerId("cus_nobody")

    with pytest.raises(NotFoundError):
        rule(shop, 50, own=True)


def test_a_rule_of_another_business_cannot_be_deleted(shop: Shop) -> None:
    theirs = Shop.open(shop.sessions, shop.buffer, name="Bolt")
    mine = rule(shop, 50)

    with pytest.raises(NotFoundError), shop.sessions.transaction() as conn:
        delete_rule(conn, theirs.business_id, mine)
