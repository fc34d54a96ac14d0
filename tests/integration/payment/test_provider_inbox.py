"""From a provider's event to credit and back: each counts once, in any order, and none is lost."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, permutations
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Connection

from metering.errors import InvalidInputError, NotFoundError
from metering.payment import inbox
from metering.payment.apply import apply_payments
from metering.payment.facts import PaidFor
from metering.payment.inbox import ATTEMPTS_MAX, EventStatus, Replay, process, replay, waiting
from metering.payment.manual import ShopRefund, record_reversal
from metering.payment.provider_account import (
    NewAccount,
    WebhookSource,
    connect_account,
    disable_account,
    webhook_source,
)
from support.provider_driver import ProviderDriver
from support.providers import Dodo, Stripe, Vendor
from support.tenant import Shop, at_once, pool_of, shared_database
from support.traffic import wait_for
from worker.session import Sessions

BOTH = pytest.mark.parametrize("vendor", [Dodo(), Stripe()], ids=lambda vendor: vendor.name)
_payments = count(1)


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "provider_inbox") as name:
        yield servers.url_of(name)


# --- once -----------------------------------------------------------------------------------------


@BOTH
def test_a_payment_becomes_credit(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor, credit=1200)

    assert driver.report(driver.paid()) == ["applied"]

    purchase = driver.purchase()
    assert (purchase.status, purchase.provider, purchase.payment_id) == (
        "settled", vendor.name, driver.payment_id,
    )  # fmt: skip
    assert driver.signed() == [("payment", 1200)]
    assert shop.faults() == []


@BOTH
def test_amounts_in_rupees_are_paise(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor, 84_900, "INR")

    driver.report(driver.paid(84_900, currency="INR"), driver.refunded(42_450, currency="INR"))

    assert driver.signed("INR") == [("payment", 84_900), ("refund", -42_450)]
    assert shop.wallet(currency="USD").balance_minor == 0
    assert shop.faults() == []


@BOTH
def test_a_webhook_that_is_delivered_again_is_kept_once(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor)
    event = driver.paid()

    numbers = [driver.receive(event, "evt_1") for _ in range(3)]

    assert numbers[1:] == [None, None]
    assert driver.statuses() == ["received"]


@BOTH
def test_a_webhook_that_is_delivered_many_times_at_once_is_kept_once(
    shop: Shop, vendor: Vendor
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    event = driver.paid()

    with pool_of(shop.sessions, 8) as many:
        numbers = at_once(*[lambda: driver.receive(event, "evt_1", many)] * 8)

    assert sorted(map(type, numbers), key=str) == [type(None)] * 7 + [int]


@BOTH
def test_an_event_that_is_processed_many_times_at_once_is_applied_once(
    shop: Shop, vendor: Vendor
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    number = driver.receive(driver.paid())

    with pool_of(shop.sessions, 8) as many:
        found = at_once(*[lambda: driver.process(number, many)] * 8)

    assert sorted(map(str, found)) == ["None"] * 7 + ["applied"]
    assert driver.signed() == [("payment", 1000)]


@BOTH
def test_many_events_of_a_payment_at_once_credit_it_once(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor)
    numbers = [driver.receive(driver.paid()) for _ in range(8)]

    with pool_of(shop.sessions, 8) as many:
        found = at_once(*[lambda number=number: driver.process(number, many) for number in numbers])

    assert found == ["applied"] * 8
    assert driver.signed() == [("payment", 1000)]
    assert shop.faults() == []


def test_a_refund_of_stripe_in_several_events_counts_once(shop: Shop) -> None:
    vendor = Stripe()
    driver = ProviderDriver.open(shop, vendor)
    refund = vendor.refund_object(400, "succeeded", "re_1", driver.payment_id, 60)

    driver.report(
        driver.paid(),
        driver.refunded(400, refund_id="re_1"),
        vendor.refunded_charge([refund], driver.payment_id),
        driver.refunded(400, refund_id="re_1", type_="refund.updated", at=70),
        driver.refunded(400, refund_id="re_1", type_="charge.refund.updated", at=70),
    )

    assert driver.signed() == [("payment", 1000), ("refund", -400)]
    assert driver.statuses() == ["applied"] * 5
    assert shop.faults() == []


# --- in any order ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_a_payment_and_its_partial_refunds_have_one_result_in_any_order(
    shop: Shop, vendor: Vendor, order: Sequence[int]
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    events = [
        driver.paid(),
        driver.refunded(300, refund_id=f"re_1_{driver.payment_id}"),
        driver.refunded(250, refund_id=f"re_2_{driver.payment_id}"),
    ]

    driver.report(*[events[number] for number in order])

    purchase = driver.purchase()
    assert (purchase.status, purchase.refunded_minor) == ("partially_reversed", 550)
    assert shop.wallet().balance_minor == 450
    assert driver.statuses() == ["applied"] * 3
    assert shop.faults() == []


@BOTH
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("end", ["won", "lost"])
def test_a_payment_and_its_dispute_have_one_result_in_any_order(
    shop: Shop, vendor: Vendor, order: Sequence[int], end: str
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    dispute = {"dispute_id": f"dp_{driver.payment_id}"}
    events = [
        driver.paid(),
        driver.disputed("opened", at=100, **dispute),
        driver.disputed(end, at=200, **dispute),
    ]

    driver.report(*[events[number] for number in order])

    wallet = shop.wallet()
    assert (driver.purchase().status, wallet.balance_minor, wallet.frozen_minor) == (
        ("settled", 1000, 0) if end == "won" else ("reversed", 0, 0)
    )
    assert driver.statuses() == ["applied"] * 3
    assert shop.faults() == []


@BOTH
def test_an_open_dispute_freezes_the_rest_of_the_credit(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor)

    driver.report(driver.paid(), driver.disputed("opened"), driver.disputed("challenged", at=130))

    assert driver.purchase().status == "disputed"
    assert shop.wallet().frozen_minor == 1000


@BOTH
def test_a_dispute_above_the_payment_takes_all_of_its_credit(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor)

    driver.report(driver.paid(), driver.disputed("lost", amount=5000))

    assert driver.signed() == [("payment", 1000), ("dispute", -1000)]
    assert shop.faults() == []


@BOTH
def test_a_payment_that_failed_first_and_then_succeeded_is_credited(
    shop: Shop, vendor: Vendor
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    driver.report(driver.paid(status="failed"))
    assert driver.purchase().status == "failed"

    driver.report(driver.paid(), driver.paid(status="processing"))

    assert driver.purchase().status == "settled"
    assert driver.signed() == [("payment", 1000)]


def test_the_purchase_id_may_stand_in_the_stripe_session_only(shop: Shop) -> None:
    vendor = Stripe()
    driver = ProviderDriver.open(shop, vendor)

    statuses = driver.report(
        driver.paid(metadata={}),
        vendor.session(payment_id=driver.payment_id, metadata=driver.mine),
    )

    assert statuses == ["parked", "applied"]
    assert driver.statuses() == ["applied", "applied"]
    assert driver.signed() == [("payment", 1000)]


@BOTH
def test_a_refund_during_the_settling_of_its_payment_is_not_lost(
    shop: Shop, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    payment, refund = driver.receive(driver.paid()), driver.receive(driver.refunded(400))
    is_noted, may_go_on = Event(), Event()

    def slowly(conn: Connection, paid_for: PaidFor, _retry_s: int) -> None:
        apply_payments(conn, paid_for)
        is_noted.set()
        assert may_go_on.wait(30)

    monkeypatch.setattr(inbox, "apply_payments", slowly)

    def of_payment(many: Sessions) -> EventStatus | None:
        assert payment is not None
        with many.transaction() as conn:
            return process(conn, payment)

    def of_refund(many: Sessions) -> EventStatus | None:
        assert is_noted.wait(30)
        return driver.process(refund, many)

    def release() -> None:
        wait_for(lambda: shop.rows(_WAITS) != [])
        may_go_on.set()

    with pool_of(shop.sessions, 2) as many:
        found = at_once(lambda: of_payment(many), lambda: of_refund(many), release)

    assert found == ["applied", "applied", None]
    assert driver.signed() == [("payment", 1000), ("refund", -400)]
    assert shop.faults() == []


_WAITS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event = 'advisory'"
)


# --- in another currency --------------------------------------------------------------------------


@BOTH
def test_a_reversal_in_another_currency_waits_for_a_person_and_freezes_the_credit(
    shop: Shop, vendor: Vendor
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    driver.report(driver.paid(), driver.disputed("opened", amount=900, currency="EUR"))

    statuses = driver.report(
        driver.disputed("lost", amount=900, currency="EUR"), driver.refunded(900, currency="EUR")
    )

    assert statuses == ["failed"] * 2
    assert [event.reason for event in driver.events("failed")] == [
        "currency: is EUR, but USD was paid; enter it by hand"
    ] * 2
    assert (driver.signed(), shop.lots()) == ([("payment", 1000)], [(1000, True)])


@BOTH
@pytest.mark.parametrize("kind", ["refund", "dispute"])
def test_a_reversal_in_another_currency_takes_nothing_in_any_order(
    shop: Shop, vendor: Vendor, kind: str
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    called_back = {
        "refund": lambda: driver.refunded(400, currency="EUR"),
        "dispute": lambda: driver.disputed("lost", amount=400, currency="EUR"),
    }[kind]()
    statuses = driver.report(called_back, driver.paid())

    again = driver.sweep()

    assert (statuses, again) == (["parked", "applied"], ["failed"])
    assert [event.reason for event in driver.events("failed")] == [
        "currency: is EUR, but USD was paid; enter it by hand"
    ]
    assert (driver.signed(), shop.lots()) == ([("payment", 1000)], [(1000, kind == "dispute")])


def disputed_in_euros(shop: Shop, vendor: Vendor) -> tuple[ProviderDriver, str]:
    """A purchase in dollars with a dispute in euros."""
    driver = ProviderDriver.open(shop, vendor)
    driver.report(driver.paid(), driver.disputed("opened", amount=500, currency="EUR"))
    (dispute,) = driver.details().reversals
    return driver, dispute.reversal_id


@BOTH
def test_the_shop_enters_the_amount_of_a_reversal_in_another_currency(
    shop: Shop, vendor: Vendor
) -> None:
    driver, dispute_id = disputed_in_euros(shop, vendor)

    driver.record_dispute(dispute_id, "lost", 580)

    assert driver.signed() == [("payment", 1000), ("dispute", -580)]
    assert [(r.amount_minor, r.currency) for r in driver.details().reversals] == [(580, "USD")]


@BOTH
def test_the_end_of_a_dispute_in_another_currency_requires_an_amount(
    shop: Shop, vendor: Vendor
) -> None:
    driver, dispute_id = disputed_in_euros(shop, vendor)

    with pytest.raises(InvalidInputError, match="amount") as caught:
        driver.record_dispute(dispute_id, "lost", None)

    assert caught.value.problems[0].reason == ("is missing: the amount before is in EUR, not USD")


def test_refunds_of_the_shop_and_of_the_provider_wait_for_each_other(shop: Shop) -> None:
    driver = ProviderDriver.open(shop, Stripe())
    driver.report(driver.paid())
    numbers = [driver.receive(driver.refunded(11, refund_id=f"re_{n}")) for n in range(20)]

    def record_by_shop(many: Sessions, refund_id: str) -> None:
        refund = ShopRefund(refund_id=refund_id, amount=11)
        with many.transaction() as conn:
            record_reversal(conn, shop.business_id, driver.purchase_id, refund)

    with pool_of(shop.sessions, 20) as many:
        found = at_once(
            *[partial(driver.process, number, many) for number in numbers],
            *[partial(record_by_shop, many, f"hand_{n}") for n in range(20)],
        )

    assert found == ["applied"] * 20 + [None] * 20
    assert shop.wallet().balance_minor == 1000 - 40 * 11
    assert shop.faults() == []


# --- parked ---------------------------------------------------------------------------------------


@BOTH
def test_a_refund_of_an_unknown_payment_is_parked_and_says_why(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor)

    driver.report(driver.refunded(400))

    (event,) = driver.events("parked")
    assert (event.reason, event.payment_id) == ("unknown_payment", driver.payment_id)
    assert shop.entries() == []


@BOTH
@pytest.mark.parametrize(
    ("amount", "currency", "reason"),
    [(1000, "USD", "paid_twice"), (999, "USD", "underpaid"), (1000, "INR", "other_currency")],
)
def test_a_payment_that_does_not_fit_its_purchase_is_parked_until_it_is_refunded(
    shop: Shop, vendor: Vendor, amount: int, currency: str, reason: str
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    if reason == "paid_twice":
        driver.report(driver.paid())
    again = replace(driver, payment_id=f"{driver.payment_id}_again")

    statuses = again.report(
        again.paid(amount, currency=currency), again.paid(amount, currency=currency)
    )

    assert statuses == ["parked"] * 2
    assert [event.reason for event in driver.events("parked")] == [reason] * 2
    again.report(again.refunded(amount, currency=currency))
    assert driver.events("parked") == []


@BOTH
def test_a_payment_that_names_no_purchase_is_parked_with_its_refund(
    shop: Shop, vendor: Vendor
) -> None:
    driver = ProviderDriver.open(shop, vendor)

    driver.report(driver.paid(metadata={}), driver.refunded(400))

    assert [event.reason for event in driver.events("parked")] == ["unknown_purchase"] * 2
    assert shop.entries() == []


@BOTH
def test_a_parked_refund_is_applied_with_its_payment(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor)
    other = ProviderDriver.open(shop, vendor)
    driver.report(driver.refunded(400, refund_id="re_mine"))
    other.report(other.refunded(400, refund_id="re_other"))

    driver.report(driver.paid())

    assert [(e.status, e.payment_id, e.reason) for e in driver.events()] == [
        ("applied", driver.payment_id, None),
        ("parked", other.payment_id, "unknown_payment"),
        ("applied", driver.payment_id, None),
    ]


@BOTH
def test_a_payment_that_names_another_tenant_s_purchase_changes_nothing(
    shop: Shop, vendor: Vendor
) -> None:
    victim = ProviderDriver.open(shop, vendor)
    thief = ProviderDriver.open(Shop.open(shop.sessions, shop.buffer, name="Thief"), vendor)

    statuses = thief.report(
        thief.paid(metadata=victim.mine),
        thief.refunded(),
        thief.disputed("lost"),
    )

    assert statuses == ["parked"] * 3
    assert victim.purchase().status == "pending"
    assert shop.entries() == thief.shop.entries() == []


@BOTH
def test_a_refund_of_another_tenant_s_payment_changes_nothing(shop: Shop, vendor: Vendor) -> None:
    victim = ProviderDriver.open(shop, vendor)
    victim.report(victim.paid())
    thief = ProviderDriver.open(Shop.open(shop.sessions, shop.buffer, name="Thief"), vendor)
    thief.payment_id = victim.payment_id

    assert thief.report(thief.refunded(), thief.disputed("lost")) == ["parked", "parked"]
    assert victim.purchase().status == "settled"
    assert victim.signed() == [("payment", 1000)]


def test_equal_payment_ids_of_two_providers_are_two_payments(shop: Shop) -> None:
    driver = ProviderDriver.open(shop, Dodo())
    driver.report(driver.paid())
    other = ProviderDriver.open(shop, Stripe())
    other.payment_id = driver.payment_id

    assert other.report(other.refunded()) == ["parked"]
    assert driver.signed() == [("payment", 1000)]


# --- ignored, failed, replayed --------------------------------------------------------------------


@BOTH
def test_an_event_that_is_not_about_a_payment_is_ignored(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor)
    event = vendor.unrelated()

    assert driver.report(event) == ["ignored"]
    assert [known.type for known in driver.events()] == [event["type"]]


@BOTH
def test_an_unreadable_event_fails_with_the_reason_and_is_not_tried_again(
    shop: Shop, vendor: Vendor
) -> None:
    driver = ProviderDriver.open(shop, vendor)

    assert driver.report(b'{"type": "payment.succeeded", "id": "evt_1"} trailing') == ["failed"]

    (event,) = driver.events()
    assert (event.attempts, event.payment_id) == (1, None)
    assert event.reason is not None
    assert event.reason.startswith("body: Invalid JSON")
    assert driver.sweep() == []


def broken(_conn: Connection, _paid_for: PaidFor, _retry_s: int) -> None:
    raise NotFoundError("wallet", "wal_gone")


@BOTH
def test_a_failing_event_is_tried_a_few_times_and_leaves_no_partial_work(
    shop: Shop, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "apply_payments", broken)
    driver = ProviderDriver.open(shop, vendor)
    number = driver.receive(driver.paid())
    assert number is not None

    found = []
    for _ in range(ATTEMPTS_MAX):
        with shop.sessions.transaction() as conn:
            found.append(process(conn, number))

    assert found == ["received"] * (ATTEMPTS_MAX - 1) + ["failed"]
    (event,) = driver.events()
    assert (event.attempts, event.reason) == (ATTEMPTS_MAX, "no wallet 'wal_gone'")
    assert shop.rows(f"SELECT 1 FROM payments WHERE business_id = '{shop.business_id}'") == []


def test_the_text_of_a_foreign_error_is_not_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = ProviderDriver.open(shop, Stripe())
    number = driver.receive(driver.paid())
    assert number is not None

    def leaking(_conn: Connection, _paid_for: PaidFor, _retry_s: int) -> None:
        raise RuntimeError("whsec_hidden")

    monkeypatch.setattr(inbox, "apply_payments", leaking)

    with shop.sessions.transaction() as conn:
        process(conn, number)

    assert [event.reason for event in driver.events()] == ["RuntimeError"]


@BOTH
def test_a_failed_event_is_applied_by_a_replay_after_its_cause_is_gone(
    shop: Shop, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    number = driver.receive(driver.paid())
    assert number is not None
    with monkeypatch.context() as patched:
        patched.setattr(inbox, "apply_payments", broken)
        for _ in range(ATTEMPTS_MAX):
            with shop.sessions.transaction() as conn:
                process(conn, number)

    assert replayed(shop) == 1
    assert driver.sweep() == ["applied"]
    (event,) = driver.events()
    assert (event.attempts, event.reason) == (1, None)
    assert driver.signed() == [("payment", 1000)]


def replayed(shop: Shop, **wanted: Any) -> int:
    with shop.sessions.transaction() as conn:
        return replay(conn, shop.business_id, Replay(**wanted))


@BOTH
def test_a_replay_of_an_applied_event_by_its_number_changes_nothing(
    shop: Shop, vendor: Vendor
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    driver.report(driver.paid(), driver.refunded(400))

    for event in driver.events():
        assert replayed(shop, event_number=event.event_number) == 1

    assert driver.sweep() == ["applied", "applied"]
    assert driver.signed() == [("payment", 1000), ("refund", -400)]


def test_a_replay_by_payment_does_not_touch_other_events(shop: Shop) -> None:
    driver, other = ProviderDriver.open(shop, Stripe()), ProviderDriver.open(shop, Stripe())
    driver.report(driver.refunded(refund_id="re_mine"))
    other.report(other.refunded(refund_id="re_other"))

    assert replayed(shop, payment_id=driver.payment_id) == 1

    assert driver.statuses() == ["received", "parked"]


def test_a_replay_takes_only_events_that_were_processed_before_it_began(shop: Shop) -> None:
    driver = ProviderDriver.open(shop, Stripe())
    driver.report(driver.refunded())
    (event,) = driver.events()

    assert replayed(shop, before=event.processed_at) == 0
    assert driver.statuses() == ["parked"]


def test_a_replay_does_not_touch_applied_and_ignored_events(shop: Shop) -> None:
    driver = ProviderDriver.open(shop, Stripe())
    driver.report(driver.paid(), driver.vendor.unrelated())

    assert replayed(shop) == 0


def test_an_event_of_another_business_cannot_be_replayed(shop: Shop) -> None:
    driver = ProviderDriver.open(shop, Stripe())
    number = driver.receive(driver.refunded())
    other = Shop.open(shop.sessions, shop.buffer, name="Other")

    with pytest.raises(NotFoundError):
        replayed(other, event_number=number)


def test_the_sweep_finds_a_page_of_unprocessed_events_oldest_first(
    shop: Shop,
) -> None:
    driver = ProviderDriver.open(shop, Stripe())
    numbers = [driver.receive(driver.paid()) for _ in range(3)]
    driver.process(numbers[0])

    with shop.sessions.transaction() as conn:
        found, two = waiting(conn, 1000), waiting(conn, 2)

    assert [number for number in found if number in numbers] == numbers[1:]
    assert len(two) == 2


def test_the_sweep_applies_an_event_whose_run_was_cut_off(shop: Shop) -> None:
    driver = ProviderDriver.open(shop, Stripe())
    number = driver.receive(driver.paid())
    assert number is not None

    with shop.sessions.transaction() as conn:
        process(conn, number)
        conn.rollback()

    assert driver.sweep() == ["applied"]
    assert driver.signed() == [("payment", 1000)]


# --- accounts -------------------------------------------------------------------------------------


def test_stored_events_of_a_disabled_account_are_processed(shop: Shop) -> None:
    driver = ProviderDriver.open(shop, Stripe())
    number = driver.receive(driver.paid())
    with shop.sessions.transaction() as conn:
        disable_account(conn, shop.business_id, driver.account.account_id)

    assert driver.process(number) == "applied"


def test_no_repr_of_an_account_shows_its_secrets(shop: Shop) -> None:
    new = NewAccount.model_validate(
        {"provider": "stripe", "name": "Main", "webhook_secret": "whsec_hid", "api_key": "sk_hid"}
    )
    with shop.sessions.transaction() as conn:
        account = connect_account(conn, shop.business_id, new)
        sender = webhook_source(conn, "stripe", account.account_id)

    assert isinstance(sender, WebhookSource)
    assert sender.secret == "whsec_hid"
    assert "hid" not in f"{new!r} {account!r} {sender!r}"
