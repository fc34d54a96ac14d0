"""A low wallet buys credit once, within its caps, and no longer after too many declines."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from metering.errors import (
    ConfigurationError,
    InvalidInputError,
    NotFoundError,
    UnsupportedCurrencyError,
)
from metering.ids import BusinessId, PackageId
from metering.low_credit.check import check_all
from metering.money import INT64_MAX
from metering.payment.charges.charge import run_charge
from metering.payment.charges.manual import fail_charge
from metering.payment.provider_account import disable_account
from metering.payment.top_ups import top_up
from metering.payment.top_ups.top_up import (
    NewTopUp,
    delete_top_up,
    enable_top_up,
    page_of_top_ups,
    set_top_up,
    start_top_ups,
)
from metering.payment.vendors.gateway import GatewayAccount, PaymentGateway
from metering.purchase import statements as of_purchases
from metering.purchase.packages import Package, archive_package, get_package
from metering.purchase.purchases import Terms, place
from metering.purchase.settle import settle_purchase
from support.checkout_driver import AT_ONCE, CheckoutDriver, connect, unavailable
from support.tenant import Shop, at_once, event, pool_of, shared_database
from support.traffic import wait_for


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "top_ups_made") as name:
        yield servers.url_of(name)


WAITS_FOR_ANOTHER = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event_type = 'Lock'"
)


def top_ups(shop: Shop) -> list[tuple[Any, ...]]:
    """Price, credit and status of each top-up, oldest first."""
    return list(
        shop.rows(
            "SELECT price_minor, credit_minor, status FROM purchases WHERE origin = 'top_up'"
            f" AND business_id = '{shop.business_id}' ORDER BY purchase_id"
        )
    )


def date_purchases(shop: Shop, moment: datetime) -> None:
    """Set the time of the purchases that were just made."""
    with shop.sessions.transaction() as conn:
        conn.execute(
            text(
                "UPDATE purchases SET created_at = :moment WHERE business_id = :b"
                " AND created_at BETWEEN now() - interval '1 hour' AND now()"
            ),
            {"moment": moment, "b": shop.business_id},
        )


def buy_at(driver: CheckoutDriver, moment: datetime) -> int:
    """Start and run top-ups at a given time; return how many were started."""
    started = driver.start(moment)
    date_purchases(driver.shop, moment)
    for charge_id in started:
        driver.run(charge_id)
    return len(started)


# --- the mark -------------------------------------------------------------------------------------


def test_posting_marks_a_wallet_at_the_threshold_and_unmarks_it_above(
    shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(1000)
    driver.rule(threshold=100)
    marks = [driver.top_up_rule().low_since is not None]

    for amount, debit in ((899, True), (1, True), (1, False)):
        shop.enter(amount, debit=debit)
        marks.append(driver.top_up_rule().low_since is not None)

    assert marks == [False, False, True, False]


def test_usage_marks_a_wallet(shop: Shop, driver: CheckoutDriver) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.enter(1000)
    driver.rule(threshold=100)

    shop.charge(900)

    assert driver.top_up_rule().low_since is not None


def test_frozen_credit_does_not_count_for_a_top_up(shop: Shop, driver: CheckoutDriver) -> None:
    driver.rule(threshold=100)
    driver.sweep()
    assert driver.top_up_rule().low_since is None

    with shop.sessions.transaction() as conn:
        (purchase_id,) = conn.execute(
            text("SELECT purchase_id FROM purchases WHERE business_id = :b"),
            {"b": shop.business_id},
        ).one()
        conn.execute(
            text(
                "INSERT INTO payment_reversals (business_id, provider, kind, reversal_id,"
                " payment_id, status, occurred_at) SELECT business_id, provider, 'dispute', 'dp_1',"
                " payment_id, 'open', now() FROM purchases WHERE purchase_id = :p"
            ),
            {"p": purchase_id},
        )
        conn.execute(of_purchases.MARK_DUE, {"purchase_id": purchase_id})
    driver.report(driver.charge().charge_id)

    assert shop.wallet().frozen_minor == 500
    assert driver.top_up_rule().low_since is not None


def test_a_new_rule_for_a_low_wallet_is_marked_at_once(driver: CheckoutDriver) -> None:
    assert driver.rule(threshold=0).low_since is not None


def test_the_scheduled_check_corrects_a_mark(shop: Shop, driver: CheckoutDriver) -> None:
    shop.enter(50)
    driver.rule(threshold=100)
    other = CheckoutDriver(Shop.open(shop.sessions, shop.buffer, name="Other"))
    other.shop.enter(500)
    other.rule(threshold=100)
    for each, marked in ((driver, "NULL"), (other, "now()")):
        each._change(
            f"UPDATE top_up_rules SET low_since = {marked} WHERE business_id = :id",
            each.shop.business_id,
        )

    check_all(shop.sessions.transaction)

    assert driver.top_up_rule().low_since is not None
    assert other.top_up_rule().low_since is None


# --- the order ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("balance", "packages"), [(100, 1), (0, 1), (-399, 1), (-400, 2), (-900, 3)]
)
def test_one_charge_buys_enough_packages_to_lift_the_wallet_above_the_threshold(
    shop: Shop, driver: CheckoutDriver, balance: int, packages: int
) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.enter(1)
    shop.charge(1 - balance) if balance < 1 else shop.enter(balance - 1)
    driver.rule(threshold=100, package_id=driver.package(price=400, credit=500))

    driver.sweep()

    assert top_ups(shop) == [(400 * packages, 500 * packages, "settled")]
    assert driver.provider.charged() == [400 * packages]
    assert shop.wallet().balance_minor == balance + 500 * packages
    assert shop.faults() == []


def test_a_wallet_above_the_threshold_buys_nothing(shop: Shop, driver: CheckoutDriver) -> None:
    shop.enter(101)
    driver.rule(threshold=100)
    driver._change(
        "UPDATE top_up_rules SET low_since = now() WHERE business_id = :id", shop.business_id
    )

    assert driver.start() == []
    assert driver.top_up_rule().low_since is None


def test_the_credit_of_a_top_up_has_the_terms_of_its_package(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule(package_id=driver.package(price=500, credit=600, valid_days=30, priority=7))

    driver.sweep()

    ((source, priority, is_dated),) = shop.rows(
        "SELECT source, priority, expires_at BETWEEN now() + interval '29 days'"
        f" AND now() + interval '31 days' FROM credit_lots WHERE business_id = '{shop.business_id}'"
    )
    assert (source, priority, is_dated) == ("paid", 7, True)


def test_no_second_top_up_starts_while_one_is_pending(shop: Shop, driver: CheckoutDriver) -> None:
    driver.rule(method="pending")
    driver.sweep()

    for _ in range(3):
        shop.enter(10)
        driver.sweep()

    assert top_ups(shop) == [(500, 500, "pending")]
    assert driver.top_up_rule().pending_purchase_id is not None
    assert shop.wallet().balance_minor == 30


def test_no_top_up_starts_before_the_decline_of_the_last_one_is_counted(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule(method="pending")
    driver.sweep()
    charge = driver.charge()
    driver.report(charge.charge_id, "failed", settles=False)
    assert charge.purchase_id is not None
    with shop.sessions.transaction() as conn:
        settle_purchase(conn, charge.purchase_id)

    assert driver.start() == []
    driver.run(charge.charge_id)

    assert driver.top_up_rule().declines == 1
    assert top_ups(shop) == [(500, 500, "failed")]


def test_the_wallets_of_several_customers_are_topped_up_separately(
    shop: Shop, driver: CheckoutDriver
) -> None:
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    for customer in range(2):
        driver.rule(customer=customer)

    driver.sweep()

    assert [shop.wallet(customer).balance_minor for customer in range(2)] == [500, 500]


def test_the_unique_index_is_the_last_guard(shop: Shop, driver: CheckoutDriver) -> None:
    driver.rule()
    with (
        pool_of(shop.sessions, 2) as many,
        ThreadPoolExecutor(1) as threads,
        many.transaction() as conn,
    ):
        # Made without a rule, and invisible until the commit.
        terms = Terms(currency="USD", price_minor=1, credit_minor=1)
        place(conn, shop.business_id, shop.customers[0], terms, origin="top_up")
        started = threads.submit(driver.start, sessions=many)
        wait_for(lambda: shop.rows(WAITS_FOR_ANOTHER)[0] == (1,))

    assert started.result() == []
    assert top_ups(shop) == [(1, 1, "pending")]


def test_a_run_starts_no_more_than_a_page(shop: Shop, driver: CheckoutDriver) -> None:
    with shop.sessions.transaction() as conn:
        for _ in range(2):
            shop.add_customer(conn)
    for customer in range(3):
        driver.rule(customer=customer)

    with shop.sessions.transaction() as conn:
        started = start_top_ups(conn, 2)

    assert len(started) == 2


def test_sums_beyond_64_bits_leave_no_room_under_a_cap(shop: Shop, driver: CheckoutDriver) -> None:
    priciest = driver.package(INT64_MAX, 1)
    caps: dict[str, Any] = {"package_id": priciest, "day_cap": INT64_MAX, "month_cap": INT64_MAX}
    driver.rule(0, method="declined", **caps)
    driver.sweep()
    declined = driver.charge().charge_id
    driver.rule(0, **caps)
    driver.end_back_off()
    driver.sweep()
    driver.report(declined, payment_id="pay_late")

    driver.rule(100, **caps)

    assert driver.start() == []
    assert top_ups(shop) == [(INT64_MAX, 1, "settled")] * 2
    assert [notice["reason"] for notice in driver.notices()][-1] == "month_cap_reached"


def test_credit_beyond_the_limit_of_the_wallet_is_not_charged(
    shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(5)
    driver.rule(package_id=driver.package(1, INT64_MAX))

    assert driver.start() == []
    assert [notice["reason"] for notice in driver.notices()] == ["wallet_cap_reached"]


def test_an_error_of_one_wallet_does_not_stop_the_others(
    shop: Shop, driver: CheckoutDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    faulty = driver.rule().package_id
    driver.rule(customer=1)

    def fails(conn: Connection, business_id: BusinessId, package_id: PackageId) -> Package:
        if package_id == faulty:
            conn.execute(text("SELECT 9223372036854775807 + 1"))
        return get_package(conn, business_id, package_id)

    monkeypatch.setattr(top_up, "get_package", fails)

    assert len(driver.start()) == 1
    assert driver.top_up_rule().retry_at is not None
    assert driver.top_up_rule(1).pending_purchase_id is not None


# --- at once --------------------------------------------------------------------------------------


def test_two_hundred_crossings_at_once_start_one_top_up(shop: Shop, driver: CheckoutDriver) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.enter(1000)
    driver.rule(threshold=990, package_id=driver.package(5000))
    shop.send(*[event(shop.customers[0], {"tokens": 1}) for _ in range(40)])

    def debit() -> None:
        shop_at_once.enter(1, debit=True)
        driver.start(sessions=many)

    def drain() -> None:
        shop.drain(batch_events=5, sessions=many)
        driver.start(sessions=many)

    with pool_of(shop.sessions, 40) as many:
        shop_at_once = Shop(many, shop.buffer, shop.business_id, shop.customers)
        found = at_once(*[debit] * 180, *[drain] * 20)

    shop.drain()
    assert [error for error in found if error is not None] == []
    assert top_ups(shop) == [(5000, 5000, "pending")]
    assert len(driver.charge_ids()) == 1

    driver.sweep()
    assert driver.provider.charged() == [5000]
    assert shop.wallet().balance_minor == 1000 - 180 - 40 + 5000
    assert shop.faults() == []


def test_top_ups_debits_and_expiry_at_once_leave_no_fault(
    shop: Shop, driver: CheckoutDriver
) -> None:
    shop.meter("tokens", {"USD": "1"})
    driver.rule(threshold=200, package_id=driver.package(300, valid_days=1), method="hangs")

    def expire() -> None:
        with many.transaction() as conn:
            conn.execute(
                text(
                    "UPDATE credit_lots SET expires_at = now() - interval '1 s'"
                    " WHERE business_id = :b AND remaining_minor > 0"
                ),
                {"b": shop.business_id},
            )

    def use() -> None:
        shop.send(event(shop.customers[0], {"tokens": 37}))
        shop.drain(sessions=many)

    def sweep() -> None:
        driver.sweep(sessions=many)

    with pool_of(shop.sessions, 16) as many:
        for _ in range(5):
            found = at_once(*[use] * 6, *[sweep] * 4, *[expire] * 2)
            assert [error for error in found if error is not None] == []
    shop.drain()
    for _ in range(3):
        driver.sweep()

    settled = [price for price, _, status in top_ups(shop) if status == "settled"]
    assert sorted(driver.provider.charged()) == sorted(settled)
    debits = sum(entry.amount_minor for entry in shop.entries() if not entry.is_credit)
    assert debits == 5 * 6 * 37
    assert shop.wallet().balance_minor == sum(settled) - debits
    assert shop.faults() == []


# --- caps -----------------------------------------------------------------------------------------

LEAP = datetime(2028, 2, 28, 23, 59, 59, tzinfo=UTC)


def spend_all(shop: Shop) -> None:
    if (balance := shop.wallet().balance_minor) > 0:
        shop.enter(balance, debit=True)


def test_a_day_ends_at_midnight_utc_also_before_a_leap_day(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule(day_cap=1000, month_cap=100_000)
    started = []
    for moment in (
        LEAP,
        LEAP,
        LEAP,  # the cap of the 28th
        LEAP + timedelta(seconds=1),  # the 29th
        LEAP + timedelta(seconds=2),
        LEAP + timedelta(days=1),  # the cap of the 29th, in its last second
        LEAP + timedelta(days=1, seconds=1),  # March
    ):
        spend_all(shop)
        started.append(buy_at(driver, moment))

    assert started == [1, 1, 0, 1, 1, 0, 1]
    assert [notice["reason"] for notice in driver.notices()] == ["day_cap_reached"] * 2
    assert [notice["retry_at"] for notice in driver.notices()] == [
        "2028-02-29T00:00:00.000000Z",
        "2028-03-01T00:00:00.000000Z",
    ]
    assert shop.faults() == []


@pytest.mark.parametrize(
    ("last", "next_month"),
    [
        (datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC), "2026-02-01"),
        (datetime(2028, 2, 29, 23, 59, 59, tzinfo=UTC), "2028-03-01"),
        (datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), "2027-01-01"),
    ],
)
def test_a_month_ends_with_its_last_day(
    shop: Shop, driver: CheckoutDriver, last: datetime, next_month: str
) -> None:
    driver.rule(day_cap=1000, month_cap=1000)
    started = []
    for moment in (last.replace(day=1), last, last, last + timedelta(seconds=1)):
        spend_all(shop)
        started.append(buy_at(driver, moment))

    assert started == [1, 1, 0, 1]
    (notice,) = driver.notices()
    assert (notice["reason"], notice["retry_at"]) == (
        "month_cap_reached",
        f"{next_month}T00:00:00.000000Z",
    )


def test_a_reached_cap_is_announced_once_a_day(shop: Shop, driver: CheckoutDriver) -> None:
    driver.rule(day_cap=500)
    buy_at(driver, LEAP - timedelta(hours=5))

    for hour in range(5):
        spend_all(shop)
        assert buy_at(driver, LEAP - timedelta(hours=5 - hour)) == 0

    assert len(driver.notices()) == 1
    assert driver.top_up_rule().retry_at == LEAP + timedelta(seconds=1)
    assert driver.provider.charged() == [500]


def test_a_cap_allows_a_part_of_the_needed_packages(shop: Shop, driver: CheckoutDriver) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.charge(3000)
    driver.rule(day_cap=1499, month_cap=1499)

    driver.sweep()

    assert top_ups(shop) == [(1000, 1000, "settled")]


def test_pending_top_ups_count_for_the_caps_and_failed_ones_do_not(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule(method="pending", day_cap=500)
    (charge_id,) = driver.start()
    driver.run(charge_id)
    driver.report(charge_id, "failed")
    driver.end_back_off()

    (second,) = driver.start()
    driver.run(second)
    driver.provider.end(second, "succeeded")
    driver.sweep()
    spend_all(shop)

    assert driver.start() == []
    assert [status for _, _, status in top_ups(shop)] == ["failed", "settled"]


def test_a_raised_cap_applies_at_once(shop: Shop, driver: CheckoutDriver) -> None:
    package = driver.package()
    driver.rule(day_cap=500, package_id=package)
    driver.sweep()
    spend_all(shop)
    assert driver.start() == []

    driver.rule(day_cap=1000, package_id=package)

    assert len(driver.start()) == 1


# --- declines -------------------------------------------------------------------------------------


def test_the_wait_doubles_with_each_decline_and_then_the_rule_is_disabled(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule(method="declined", declines_max=3)
    waits = []
    for _ in range(3):
        driver.sweep()
        assert driver.start() == [], "it waits, or is disabled"
        ((wait_s,),) = shop.rows(
            "SELECT round(extract(epoch FROM retry_at - updated_at)) FROM top_up_rules"
            f" WHERE business_id = '{shop.business_id}'"
        )
        waits.append(wait_s)
        driver.end_back_off()
    driver.sweep()

    assert waits == [3600, 7200, 14_400]
    assert [status for _, _, status in top_ups(shop)] == ["failed"] * 3
    assert [(n["declines"], n["is_disabled"], n["failure"]) for n in driver.notices()] == [
        (1, False, "card_declined"),
        (2, False, "card_declined"),
        (3, True, "card_declined"),
    ]
    assert driver.top_up_rule().disabled_reason == "too_many_declines"
    assert (driver.provider.charged(), shop.entries()) == ([], [])


def test_a_rule_waits_at_most_a_day(shop: Shop, driver: CheckoutDriver) -> None:
    driver.rule(method="declined", declines_max=100)
    driver._change(
        "UPDATE top_up_rules SET declines = 60 WHERE business_id = :id", shop.business_id
    )

    driver.sweep()

    ((wait_s,),) = shop.rows(
        "SELECT round(extract(epoch FROM retry_at - updated_at)) FROM top_up_rules"
        f" WHERE business_id = '{shop.business_id}'"
    )
    assert wait_s == 86_400


def test_a_success_resets_the_declines(shop: Shop, driver: CheckoutDriver) -> None:
    package = driver.package()
    driver.rule(method="declined", package_id=package)
    driver.sweep()
    driver.rule(method="ok", package_id=package)

    driver.sweep()

    rule = driver.top_up_rule()
    assert (rule.declines, rule.retry_at) == (0, None)
    assert shop.wallet().balance_minor == 500


def test_a_declined_charge_that_is_paid_later_is_credited(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule(method="declined")
    driver.sweep()

    driver.report(driver.charge().charge_id)

    assert driver.top_up_rule().declines == 0
    assert top_ups(shop) == [(500, 500, "settled")]
    assert driver.charge().status == "succeeded"
    assert shop.faults() == []


def test_a_new_payment_of_a_declined_charge_does_not_reopen_it_beside_the_next_top_up(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule(method="declined")
    driver.sweep()
    declined = driver.charge().charge_id
    driver.end_back_off()
    driver.start()

    driver.report(declined, "pending", payment_id="pay_again")

    assert [status for _, _, status in top_ups(shop)] == ["failed", "pending"]


def test_a_disabled_rule_does_not_charge_until_it_is_enabled(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule(method="declined", declines_max=1)
    driver.sweep()
    driver.rule(method="ok", declines_max=1)
    driver.end_back_off()
    driver.sweep()
    assert driver.provider.charged() == []

    with shop.sessions.transaction() as conn:
        rule = enable_top_up(conn, shop.business_id, shop.customers[0], "USD")
    driver.sweep()

    assert (rule.declines, rule.disabled_at, rule.disabled_reason) == (0, None, None)
    assert driver.provider.charged() == [500]


def test_a_rule_that_is_deleted_before_the_first_request_charges_nothing(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule()
    (charge_id,) = driver.start()
    with shop.sessions.transaction() as conn:
        delete_top_up(conn, shop.business_id, shop.customers[0], "USD")

    driver.run(charge_id)

    assert driver.provider.calls == []
    assert driver.charge(charge_id).failure == "top_up_disabled"
    assert [status for _, _, status in top_ups(shop)] == ["failed"]


def test_a_charge_without_an_answer_is_no_decline(shop: Shop, driver: CheckoutDriver) -> None:
    driver.rule()
    driver.provider.before = unavailable

    driver.sweep()

    assert driver.top_up_rule().declines == 0
    assert top_ups(shop) == [(500, 500, "pending")]


@pytest.mark.parametrize("is_repeated", [False, True])
def test_a_request_that_the_provider_refuses_is_parked_and_is_no_decline(
    shop: Shop, driver: CheckoutDriver, *, is_repeated: bool
) -> None:
    driver.rule(method="refused")
    if is_repeated:
        driver.provider.before = unavailable
        driver.sweep()
        driver.provider.before = lambda _call: None

    driver.sweep()
    driver.sweep()

    charge, rule = driver.charge(), driver.top_up_rule()
    assert (charge.is_parked, charge.failure) == (True, "no such payment method")
    assert (rule.declines, rule.retry_at, driver.notices()) == (0, None, [])
    assert top_ups(shop) == [(500, 500, "pending")]
    assert shop.faults() == []


def test_a_charge_that_an_operator_fails_is_no_decline(shop: Shop, driver: CheckoutDriver) -> None:
    driver.rule(method="refused")
    driver.sweep()
    charge_id = driver.charge().charge_id
    driver.rule(method="ok")

    with shop.sessions.transaction() as conn:
        fail_charge(conn, shop.business_id, charge_id, "put right")
    driver.sweep()

    assert (driver.top_up_rule().declines, driver.notices()) == (0, [])
    assert [status for _, _, status in top_ups(shop)] == ["failed", "settled"]
    assert driver.provider.charged() == [500]


def test_a_wallet_with_expired_credit_is_topped_up_before_the_expiry_is_posted(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule(100)
    shop.grant(150, days=1)
    driver.sweep()
    assert top_ups(shop) == []
    shop.pass_days(1)

    check_all(shop.sessions.transaction)
    driver.sweep()

    assert top_ups(shop) == [(500, 500, "settled")]


def test_an_account_that_cannot_charge_yet_is_no_decline(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule()

    def unconfigured(_account: GatewayAccount) -> PaymentGateway:
        raise ConfigurationError("the stripe account has no good api_key")

    (charge_id,) = driver.start()
    run_charge(shop.sessions.transaction, unconfigured, charge_id, AT_ONCE)
    assert (driver.top_up_rule().declines, driver.charge().status) == (0, "new")

    driver.sweep()
    assert top_ups(shop) == [(500, 500, "settled")]


def test_a_disabled_account_disables_its_rule_without_a_decline(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.rule()
    driver.start()
    with shop.sessions.transaction() as conn:
        disable_account(conn, shop.business_id, driver.account_id)

    for _ in range(3):
        driver.sweep()

    rule = driver.top_up_rule()
    assert (rule.declines, rule.disabled_reason) == (0, "account_disabled")
    assert [(n["reason"], n["is_disabled"]) for n in driver.notices()] == [
        ("account_disabled", True)
    ]
    assert [status for _, _, status in top_ups(shop)] == ["failed"]
    assert driver.provider.calls == []


def test_an_archived_package_disables_the_rule(shop: Shop, driver: CheckoutDriver) -> None:
    package = driver.package()
    driver.rule(package_id=package)
    with shop.sessions.transaction() as conn:
        archive_package(conn, shop.business_id, package)

    driver.sweep()

    assert driver.top_up_rule().disabled_reason == "package_archived"
    assert [notice["reason"] for notice in driver.notices()] == ["package_archived"]
    assert top_ups(shop) == []


# --- the rule -------------------------------------------------------------------------------------


def test_setting_a_rule_again_changes_it_and_keeps_the_back_off(driver: CheckoutDriver) -> None:
    package = driver.package()
    driver.rule(threshold=100, method="declined", package_id=package)
    driver.sweep()
    waits_until = driver.top_up_rule().retry_at

    driver.rule(threshold=50, method="declined", package_id=package)

    rule = driver.top_up_rule()
    assert (rule.threshold_minor, rule.declines, rule.retry_at) == (50, 1, waits_until)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"day_cap": 499}, "day_cap: is below the price of one package, 500"),
        ({"month_cap": 9999}, "month_cap: is below day_cap"),
        ({"package_id": "inr"}, "package_id: sells INR, not USD"),
        ({"package_id": "archived"}, "package_id: is not on sale any more"),
        ({"account_id": "disabled"}, "account_id: is not in use any more"),
    ],
)
def test_a_rule_that_could_not_work_is_refused(
    shop: Shop, driver: CheckoutDriver, changes: dict[str, Any], message: str
) -> None:
    made: dict[str, Callable[[], str]] = {
        "inr": lambda: driver.package(currency="INR"),
        "archived": lambda: _archived(driver),
        "disabled": lambda: _disabled(driver),
    }
    given: dict[str, Any] = {name: made[v]() if v in made else v for name, v in changes.items()}

    with pytest.raises(InvalidInputError, match=message):
        driver.rule(**given)

    with shop.sessions.transaction() as conn:
        assert page_of_top_ups(conn, shop.business_id, page=9) == []


def _archived(driver: CheckoutDriver) -> PackageId:
    package = driver.package()
    with driver.shop.sessions.transaction() as conn:
        archive_package(conn, driver.shop.business_id, package)
    return package


def _disabled(driver: CheckoutDriver) -> str:
    account = connect(driver.shop.sessions, driver.shop.business_id)
    driver._change(
        "UPDATE provider_accounts SET disabled_at = now() WHERE account_id = :id", account
    )
    return account


def test_the_packages_and_accounts_of_another_business_are_not_found(
    shop: Shop, driver: CheckoutDriver
) -> None:
    other = CheckoutDriver(Shop.open(shop.sessions, shop.buffer, name="Other"))

    for given in ({"package_id": other.package()}, {"account_id": other.account_id}):
        with pytest.raises(NotFoundError):
            driver.rule(**given)


def test_the_error_says_that_a_wallet_has_no_rule(driver: CheckoutDriver) -> None:
    with pytest.raises(NotFoundError, match="no top-up rule of wallet"):
        driver.top_up_rule()


def test_a_missing_wallet_gets_no_rule(shop: Shop) -> None:
    new = NewTopUp(threshold=1, package_id="p", payment_method="m", day_cap=1, month_cap=1)

    with shop.sessions.transaction() as conn, pytest.raises(UnsupportedCurrencyError):
        set_top_up(conn, shop.business_id, shop.customers[0], "EUR", new)
