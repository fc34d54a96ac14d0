"""From what a provider says to credit and back: each event once, in any order, nothing dropped."""

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
from support.provider_counter import Till
from support.providers import Dodo, Stripe, Vendor
from support.tenant import Shop, at_once, crowd, shared_database
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
    till = Till.open(shop, vendor, credit=1200)

    assert till.say(till.paid()) == ["applied"]

    purchase = till.purchase()
    assert (purchase.status, purchase.provider, purchase.payment_id) == (
        "settled", vendor.name, till.payment_id,
    )  # fmt: skip
    assert till.signed() == [("payment", 1200)]
    assert shop.faults() == []


@BOTH
def test_rupees_are_paise(shop: Shop, vendor: Vendor) -> None:
    till = Till.open(shop, vendor, 84_900, "INR")

    till.say(till.paid(84_900, currency="INR"), till.refunded(42_450, currency="INR"))

    assert till.signed("INR") == [("payment", 84_900), ("refund", -42_450)]
    assert shop.wallet(currency="USD").balance_minor == 0
    assert shop.faults() == []


@BOTH
def test_a_webhook_that_is_delivered_again_is_kept_once(shop: Shop, vendor: Vendor) -> None:
    till = Till.open(shop, vendor)
    event = till.paid()

    numbers = [till.receive(event, "evt_1") for _ in range(3)]

    assert numbers[1:] == [None, None]
    assert till.statuses() == ["received"]


@BOTH
def test_a_webhook_that_is_delivered_many_times_at_once_is_kept_once(
    shop: Shop, vendor: Vendor
) -> None:
    till = Till.open(shop, vendor)
    event = till.paid()

    with crowd(shop.sessions, 8) as many:
        numbers = at_once(*[lambda: till.receive(event, "evt_1", many)] * 8)

    assert sorted(map(type, numbers), key=str) == [type(None)] * 7 + [int]


@BOTH
def test_an_event_that_is_processed_many_times_at_once_is_applied_once(
    shop: Shop, vendor: Vendor
) -> None:
    till = Till.open(shop, vendor)
    number = till.receive(till.paid())

    with crowd(shop.sessions, 8) as many:
        found = at_once(*[lambda: till.process(number, many)] * 8)

    assert sorted(map(str, found)) == ["None"] * 7 + ["applied"]
    assert till.signed() == [("payment", 1000)]


@BOTH
def test_a_payment_in_many_events_at_once_is_credited_once(shop: Shop, vendor: Vendor) -> None:
    till = Till.open(shop, vendor)
    numbers = [till.receive(till.paid()) for _ in range(8)]

    with crowd(shop.sessions, 8) as many:
        found = at_once(*[lambda number=number: till.process(number, many) for number in numbers])

    assert found == ["applied"] * 8
    assert till.signed() == [("payment", 1000)]
    assert shop.faults() == []


def test_a_refund_of_stripe_that_several_events_tell_of_counts_once(shop: Shop) -> None:
    vendor = Stripe()
    till = Till.open(shop, vendor)
    refund = vendor.refund_object(400, "succeeded", "re_1", till.payment_id, 60)

    till.say(
        till.paid(),
        till.refunded(400, refund_id="re_1"),
        vendor.refunded_charge([refund], till.payment_id),
        till.refunded(400, refund_id="re_1", type_="refund.updated", at=70),
        till.refunded(400, refund_id="re_1", type_="charge.refund.updated", at=70),
    )

    assert till.signed() == [("payment", 1000), ("refund", -400)]
    assert till.statuses() == ["applied"] * 5
    assert shop.faults() == []


# --- in any order ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_a_payment_and_its_partial_refunds_end_alike_in_any_order(
    shop: Shop, vendor: Vendor, order: Sequence[int]
) -> None:
    till = Till.open(shop, vendor)
    events = [
        till.paid(),
        till.refunded(300, refund_id=f"re_1_{till.payment_id}"),
        till.refunded(250, refund_id=f"re_2_{till.payment_id}"),
    ]

    till.say(*[events[number] for number in order])

    purchase = till.purchase()
    assert (purchase.status, purchase.refunded_minor) == ("partially_reversed", 550)
    assert shop.wallet().balance_minor == 450
    assert till.statuses() == ["applied"] * 3
    assert shop.faults() == []


@BOTH
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("end", ["won", "lost"])
def test_a_payment_and_its_dispute_end_alike_in_any_order(
    shop: Shop, vendor: Vendor, order: Sequence[int], end: str
) -> None:
    till = Till.open(shop, vendor)
    dispute = {"dispute_id": f"dp_{till.payment_id}"}
    events = [
        till.paid(),
        till.disputed("opened", at=100, **dispute),
        till.disputed(end, at=200, **dispute),
    ]

    till.say(*[events[number] for number in order])

    wallet = shop.wallet()
    assert (till.purchase().status, wallet.balance_minor, wallet.frozen_minor) == (
        ("settled", 1000, 0) if end == "won" else ("reversed", 0, 0)
    )
    assert till.statuses() == ["applied"] * 3
    assert shop.faults() == []


@BOTH
def test_an_open_dispute_freezes_what_is_left(shop: Shop, vendor: Vendor) -> None:
    till = Till.open(shop, vendor)

    till.say(till.paid(), till.disputed("opened"), till.disputed("challenged", at=130))

    assert till.purchase().status == "disputed"
    assert shop.wallet().frozen_minor == 1000


@BOTH
def test_a_dispute_above_the_payment_takes_all_of_its_credit(shop: Shop, vendor: Vendor) -> None:
    till = Till.open(shop, vendor)

    till.say(till.paid(), till.disputed("lost", amount=5000))

    assert till.signed() == [("payment", 1000), ("dispute", -1000)]
    assert shop.faults() == []


@BOTH
def test_a_payment_that_failed_first_and_then_succeeded_is_credited(
    shop: Shop, vendor: Vendor
) -> None:
    till = Till.open(shop, vendor)
    till.say(till.paid(status="failed"))
    assert till.purchase().status == "failed"

    till.say(till.paid(), till.paid(status="processing"))

    assert till.purchase().status == "settled"
    assert till.signed() == [("payment", 1000)]


def test_metadata_of_a_stripe_session_alone_is_enough(shop: Shop) -> None:
    vendor = Stripe()
    till = Till.open(shop, vendor)

    said = till.say(
        till.paid(metadata={}),
        vendor.session(payment_id=till.payment_id, metadata=till.mine),
    )

    assert said == ["parked", "applied"]
    assert till.statuses() == ["applied", "applied"]
    assert till.signed() == [("payment", 1000)]


@BOTH
def test_a_refund_that_comes_while_its_payment_is_being_settled_is_not_lost(
    shop: Shop, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    till = Till.open(shop, vendor)
    payment, refund = till.receive(till.paid()), till.receive(till.refunded(400))
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
        return till.process(refund, many)

    def release() -> None:
        wait_for(lambda: shop.rows(_WAITS) != [])
        may_go_on.set()

    with crowd(shop.sessions, 2) as many:
        found = at_once(lambda: of_payment(many), lambda: of_refund(many), release)

    assert found == ["applied", "applied", None]
    assert till.signed() == [("payment", 1000), ("refund", -400)]
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
    till = Till.open(shop, vendor)
    till.say(till.paid(), till.disputed("opened", amount=900, currency="EUR"))

    said = till.say(
        till.disputed("lost", amount=900, currency="EUR"), till.refunded(900, currency="EUR")
    )

    assert said == ["failed"] * 2
    assert [event.reason for event in till.events("failed")] == [
        "currency: is EUR, but USD was paid; enter it by hand"
    ] * 2
    assert (till.signed(), shop.lots()) == ([("payment", 1000)], [(1000, True)])


@BOTH
@pytest.mark.parametrize("kind", ["refund", "dispute"])
def test_a_reversal_in_another_currency_takes_nothing_in_any_order(
    shop: Shop, vendor: Vendor, kind: str
) -> None:
    till = Till.open(shop, vendor)
    called_back = {
        "refund": lambda: till.refunded(400, currency="EUR"),
        "dispute": lambda: till.disputed("lost", amount=400, currency="EUR"),
    }[kind]()
    said = till.say(called_back, till.paid())

    again = till.sweep()

    assert (said, again) == (["parked", "applied"], ["failed"])
    assert [event.reason for event in till.events("failed")] == [
        "currency: is EUR, but USD was paid; enter it by hand"
    ]
    assert (till.signed(), shop.lots()) == ([("payment", 1000)], [(1000, kind == "dispute")])


def disputed_in_euros(shop: Shop, vendor: Vendor) -> tuple[Till, str]:
    """What was paid in dollars is in dispute."""
    till = Till.open(shop, vendor)
    till.say(till.paid(), till.disputed("opened", amount=500, currency="EUR"))
    (dispute,) = till.known().reversals
    return till, dispute.reversal_id


@BOTH
def test_the_shop_enters_the_amount_of_a_reversal_in_another_currency(
    shop: Shop, vendor: Vendor
) -> None:
    till, dispute_id = disputed_in_euros(shop, vendor)

    till.record_dispute(dispute_id, "lost", 580)

    assert till.signed() == [("payment", 1000), ("dispute", -580)]
    assert [(r.amount_minor, r.currency) for r in till.known().reversals] == [(580, "USD")]


@BOTH
def test_the_end_of_a_dispute_in_another_currency_requires_an_amount(
    shop: Shop, vendor: Vendor
) -> None:
    till, dispute_id = disputed_in_euros(shop, vendor)

    with pytest.raises(InvalidInputError, match="amount") as caught:
        till.record_dispute(dispute_id, "lost", None)

    assert caught.value.problems[0].reason == ("is missing: the amount before is in EUR, not USD")


def test_refunds_of_the_shop_and_of_the_provider_wait_for_each_other(shop: Shop) -> None:
    till = Till.open(shop, Stripe())
    till.say(till.paid())
    numbers = [till.receive(till.refunded(11, refund_id=f"re_{n}")) for n in range(20)]

    def by_hand(many: Sessions, refund_id: str) -> None:
        said = ShopRefund(refund_id=refund_id, amount=11)
        with many.transaction() as conn:
            record_reversal(conn, shop.business_id, till.purchase_id, said)

    with crowd(shop.sessions, 20) as many:
        found = at_once(
            *[partial(till.process, number, many) for number in numbers],
            *[partial(by_hand, many, f"hand_{n}") for n in range(20)],
        )

    assert found == ["applied"] * 20 + [None] * 20
    assert shop.wallet().balance_minor == 1000 - 40 * 11
    assert shop.faults() == []


# --- parked ---------------------------------------------------------------------------------------


@BOTH
def test_a_refund_of_an_unknown_payment_is_parked_and_says_why(shop: Shop, vendor: Vendor) -> None:
    till = Till.open(shop, vendor)

    till.say(till.refunded(400))

    (event,) = till.events("parked")
    assert (event.reason, event.payment_id) == ("unknown_payment", till.payment_id)
    assert shop.entries() == []


@BOTH
@pytest.mark.parametrize(
    ("amount", "currency", "reason"),
    [(1000, "USD", "paid_twice"), (999, "USD", "underpaid"), (1000, "INR", "other_currency")],
)
def test_money_that_nothing_follows_from_is_parked_until_it_is_refunded(
    shop: Shop, vendor: Vendor, amount: int, currency: str, reason: str
) -> None:
    till = Till.open(shop, vendor)
    if reason == "paid_twice":
        till.say(till.paid())
    again = replace(till, payment_id=f"{till.payment_id}_again")

    said = again.say(again.paid(amount, currency=currency), again.paid(amount, currency=currency))

    assert said == ["parked"] * 2
    assert [event.reason for event in till.events("parked")] == [reason] * 2
    again.say(again.refunded(amount, currency=currency))
    assert till.events("parked") == []


@BOTH
def test_a_payment_that_names_no_purchase_is_parked_with_its_refund(
    shop: Shop, vendor: Vendor
) -> None:
    till = Till.open(shop, vendor)

    till.say(till.paid(metadata={}), till.refunded(400))

    assert [event.reason for event in till.events("parked")] == ["unknown_purchase"] * 2
    assert shop.entries() == []


@BOTH
def test_a_parked_event_is_applied_with_its_payment(shop: Shop, vendor: Vendor) -> None:
    till = Till.open(shop, vendor)
    other = Till.open(shop, vendor)
    till.say(till.refunded(400, refund_id="re_mine"))
    other.say(other.refunded(400, refund_id="re_other"))

    till.say(till.paid())

    assert [(e.status, e.payment_id, e.reason) for e in till.events()] == [
        ("applied", till.payment_id, None),
        ("parked", other.payment_id, "unknown_payment"),
        ("applied", till.payment_id, None),
    ]


@BOTH
def test_a_payment_that_names_another_tenant_s_purchase_changes_nothing(
    shop: Shop, vendor: Vendor
) -> None:
    victim = Till.open(shop, vendor)
    thief = Till.open(Shop.open(shop.sessions, shop.buffer, name="Thief"), vendor)

    said = thief.say(
        thief.paid(metadata=victim.mine),
        thief.refunded(),
        thief.disputed("lost"),
    )

    assert said == ["parked"] * 3
    assert victim.purchase().status == "pending"
    assert shop.entries() == thief.shop.entries() == []


@BOTH
def test_a_refund_of_another_tenant_s_payment_changes_nothing(shop: Shop, vendor: Vendor) -> None:
    victim = Till.open(shop, vendor)
    victim.say(victim.paid())
    thief = Till.open(Shop.open(shop.sessions, shop.buffer, name="Thief"), vendor)
    thief.payment_id = victim.payment_id

    assert thief.say(thief.refunded(), thief.disputed("lost")) == ["parked", "parked"]
    assert victim.purchase().status == "settled"
    assert victim.signed() == [("payment", 1000)]


def test_a_payment_id_of_another_provider_is_another_payment(shop: Shop) -> None:
    till = Till.open(shop, Dodo())
    till.say(till.paid())
    other = Till.open(shop, Stripe())
    other.payment_id = till.payment_id

    assert other.say(other.refunded()) == ["parked"]
    assert till.signed() == [("payment", 1000)]


# --- ignored, failed, replayed --------------------------------------------------------------------


@BOTH
def test_an_event_that_is_not_about_a_payment_is_ignored(shop: Shop, vendor: Vendor) -> None:
    till = Till.open(shop, vendor)
    event = vendor.unrelated()

    assert till.say(event) == ["ignored"]
    assert [known.type for known in till.events()] == [event["type"]]


@BOTH
def test_an_event_that_cannot_be_read_fails_with_the_reason_and_is_not_tried_again(
    shop: Shop, vendor: Vendor
) -> None:
    till = Till.open(shop, vendor)

    assert till.say(b'{"type": "payment.succeeded", "id": "evt_1"} trailing') == ["failed"]

    (event,) = till.events()
    assert (event.attempts, event.payment_id) == (1, None)
    assert event.reason is not None
    assert event.reason.startswith("body: Invalid JSON")
    assert till.sweep() == []


def broken(_conn: Connection, _paid_for: PaidFor, _retry_s: int) -> None:
    raise NotFoundError("wallet", "wal_gone")


@BOTH
def test_an_event_that_fails_is_tried_a_few_times_and_leaves_nothing_half_done(
    shop: Shop, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "apply_payments", broken)
    till = Till.open(shop, vendor)
    number = till.receive(till.paid())
    assert number is not None

    found = []
    for _ in range(ATTEMPTS_MAX):
        with shop.sessions.transaction() as conn:
            found.append(process(conn, number))

    assert found == ["received"] * (ATTEMPTS_MAX - 1) + ["failed"]
    (event,) = till.events()
    assert (event.attempts, event.reason) == (ATTEMPTS_MAX, "no wallet 'wal_gone'")
    assert shop.rows(f"SELECT 1 FROM payments WHERE business_id = '{shop.business_id}'") == []


def test_the_text_of_an_error_that_is_not_ours_is_not_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    till = Till.open(shop, Stripe())
    number = till.receive(till.paid())
    assert number is not None

    def leaking(_conn: Connection, _paid_for: PaidFor, _retry_s: int) -> None:
        raise RuntimeError("whsec_hidden")

    monkeypatch.setattr(inbox, "apply_payments", leaking)

    with shop.sessions.transaction() as conn:
        process(conn, number)

    assert [event.reason for event in till.events()] == ["RuntimeError"]


@BOTH
def test_a_failed_event_is_applied_when_it_is_replayed_after_its_cause_is_gone(
    shop: Shop, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    till = Till.open(shop, vendor)
    number = till.receive(till.paid())
    assert number is not None
    with monkeypatch.context() as patched:
        patched.setattr(inbox, "apply_payments", broken)
        for _ in range(ATTEMPTS_MAX):
            with shop.sessions.transaction() as conn:
                process(conn, number)

    assert replayed(shop) == 1
    assert till.sweep() == ["applied"]
    (event,) = till.events()
    assert (event.attempts, event.reason) == (1, None)
    assert till.signed() == [("payment", 1000)]


def replayed(shop: Shop, **wanted: Any) -> int:
    with shop.sessions.transaction() as conn:
        return replay(conn, shop.business_id, Replay(**wanted))


@BOTH
def test_an_applied_event_that_is_replayed_by_its_number_changes_nothing(
    shop: Shop, vendor: Vendor
) -> None:
    till = Till.open(shop, vendor)
    till.say(till.paid(), till.refunded(400))

    for event in till.events():
        assert replayed(shop, event_number=event.event_number) == 1

    assert till.sweep() == ["applied", "applied"]
    assert till.signed() == [("payment", 1000), ("refund", -400)]


def test_a_replay_by_payment_leaves_the_others_alone(shop: Shop) -> None:
    till, other = Till.open(shop, Stripe()), Till.open(shop, Stripe())
    till.say(till.refunded(refund_id="re_mine"))
    other.say(other.refunded(refund_id="re_other"))

    assert replayed(shop, payment_id=till.payment_id) == 1

    assert till.statuses() == ["received", "parked"]


def test_a_replay_takes_only_events_that_were_processed_before_its_moment(shop: Shop) -> None:
    till = Till.open(shop, Stripe())
    till.say(till.refunded())
    (event,) = till.events()

    assert replayed(shop, before=event.processed_at) == 0
    assert till.statuses() == ["parked"]


def test_a_replay_leaves_applied_and_ignored_events_alone(shop: Shop) -> None:
    till = Till.open(shop, Stripe())
    till.say(till.paid(), till.vendor.unrelated())

    assert replayed(shop) == 0


def test_an_event_of_another_business_cannot_be_replayed(shop: Shop) -> None:
    till = Till.open(shop, Stripe())
    number = till.receive(till.refunded())
    other = Shop.open(shop.sessions, shop.buffer, name="Other")

    with pytest.raises(NotFoundError):
        replayed(other, event_number=number)


def test_the_sweep_finds_a_page_of_unprocessed_events_oldest_first(
    shop: Shop,
) -> None:
    till = Till.open(shop, Stripe())
    numbers = [till.receive(till.paid()) for _ in range(3)]
    till.process(numbers[0])

    with shop.sessions.transaction() as conn:
        found, two = waiting(conn, 1000), waiting(conn, 2)

    assert [number for number in found if number in numbers] == numbers[1:]
    assert len(two) == 2


def test_an_event_whose_run_was_cut_off_is_found_and_applied(shop: Shop) -> None:
    till = Till.open(shop, Stripe())
    number = till.receive(till.paid())
    assert number is not None

    with shop.sessions.transaction() as conn:
        process(conn, number)
        conn.rollback()

    assert till.sweep() == ["applied"]
    assert till.signed() == [("payment", 1000)]


# --- accounts -------------------------------------------------------------------------------------


def test_stored_events_of_a_disabled_account_are_processed(shop: Shop) -> None:
    till = Till.open(shop, Stripe())
    number = till.receive(till.paid())
    with shop.sessions.transaction() as conn:
        disable_account(conn, shop.business_id, till.account.account_id)

    assert till.process(number) == "applied"


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
