"""`gullak status`: one page, and an exit code that says whether a person should look."""

from typing import cast

import pytest

from metering.buffer.keys import stream_key
from metering.buffer.stream import UsageBuffer
from support.checkout_driver import AT_ONCE, CheckoutDriver, unavailable
from support.command import Gullak
from support.tenant import Shop, event


def age(buffer: UsageBuffer, seconds: int) -> None:
    """Make the buffered events older."""
    for key in (stream_key(shard) for shard in buffer.shards):
        for stream_id, fields in cast(
            "list[tuple[bytes, dict[bytes, bytes]]]", buffer.redis.xrange(key)
        ):
            buffer.redis.delete(key)
            moment = int(stream_id.split(b"-")[0]) - seconds * 1000
            buffer.redis.xadd(key, dict(fields), id=f"{moment}-0")  # type: ignore[arg-type]


def test_an_installation_without_faults_exits_0(gullak: Gullak, shop: Shop) -> None:
    shop.meter()
    shop.enter(5)
    shop.charge(40)  # ten cents: five more than the balance

    page = gullak("status")
    status = gullak("status", "--json")

    assert (page.code, status.code) == (0, 0)
    assert [line.split("  ")[0] for line in page.out.splitlines()[1:]] == [
        *("buffer", "refused events", "webhooks", "parked money", "wallets below zero"),
        "last verify",
    ]
    assert "1 in USD, -5 (-0.05 USD)" in page.out
    record = status.json
    verified = record.pop("verified")
    assert (verified["is_complete"], verified["faults"]) == (False, 0)
    assert 0 <= verified["age_s"] < 600
    assert record == {
        "is_well": True,
        "look_at": [],
        "buffer": {"events": 0, "oldest_age_s": None},
        "refused": {},
        "webhooks": {"dead": 0, "pending": 0, "failing": 0},
        "parked": {"payments": 0, "charges": 0, "provider_events": 0},
        "below_zero": {"USD": {"wallets": 1, "balance_minor": -5}},
    }


def test_usage_that_waits_too_long_is_a_fault(
    gullak: Gullak, shop: Shop, buffer: UsageBuffer
) -> None:
    shop.send(event(shop.customers[0]), event(shop.customers[0]))

    fresh = gullak("status", "--json")
    age(buffer, 90)
    late = gullak("status", "--json")

    assert (fresh.code, fresh.json["buffer"]["events"]) == (0, 2)
    assert 0 <= fresh.json["buffer"]["oldest_age_s"] < 60
    assert (late.code, late.json["look_at"]) == (1, ["buffer"])
    assert 90 <= late.json["buffer"]["oldest_age_s"] < 150
    assert "2 events, the oldest 9" in gullak("status").out


def test_the_oldest_of_all_shards_counts(shop: Shop, buffer: UsageBuffer) -> None:
    assert buffer.oldest_age_s() is None
    shop.send(event("cus_a"))
    age(buffer, 30)
    shop.send(*(event(f"cus_{number}") for number in range(50)))

    assert 30 <= cast("float", buffer.oldest_age_s()) < 90


def test_work_for_a_person_is_named_with_the_command_that_shows_it(
    gullak: Gullak, shop: Shop
) -> None:
    shop.meter()
    driver = CheckoutDriver(shop)
    driver.provider.before = unavailable
    charge = driver.check_out(1000).charge_id
    assert charge is not None
    driver.age(charge, AT_ONCE.ask_for_s + 1)
    driver.sweep()
    shop.send(event("cus_unknown"), event(shop.customers[0], {"tokens": "many"}))
    shop.drain()

    status = gullak("status", "--json")
    page = gullak("status").out

    assert status.code == 1
    assert status.json["look_at"] == ["refused events", "parked money"]
    assert status.json["refused"] == {"bad_quantity": 1, "unknown_customer": 1}
    assert status.json["parked"] == {"payments": 0, "charges": 1, "provider_events": 0}
    assert "gullak refused" in page
    assert "gullak charge list --parked" in page


def test_parked_payments_and_failed_events_are_counted(gullak: Gullak, shop: Shop) -> None:
    driver = CheckoutDriver(shop)
    shop.run(
        "INSERT INTO payments (business_id, provider, payment_id, status, amount_minor, currency,"
        " parked_reason, occurred_at)"
        f" VALUES ('{shop.business_id}', 'stripe', 'pay_1', 'succeeded', 5, 'USD', 'why', now())"
    )
    shop.run(
        "INSERT INTO provider_events (provider, account_id, business_id, provider_event_id, body,"
        " status) SELECT 'stripe', account_id, business_id, unnest('{e1,e2}'::text[]), '',"
        " unnest('{failed,applied}'::text[]) FROM provider_accounts"
        f" WHERE account_id = '{driver.account_id}'"
    )

    status = gullak("status", "--json")

    assert (status.code, status.json["look_at"]) == (1, ["parked money"])
    assert status.json["parked"] == {"payments": 1, "charges": 0, "provider_events": 1}


def test_dead_webhooks_are_a_fault_and_failing_ones_are_not(gullak: Gullak, shop: Shop) -> None:
    own = f"--business={shop.business_id}"
    gullak.made("endpoint", "create", "https://example.com/hook", "--type=credit.balance_low", own)
    gullak.made("rule", "set", "--currency=USD", "--threshold=100", own)
    shop.enter(200)
    shop.enter(150, debit=True)
    shop.run("UPDATE webhook_deliveries SET attempts = 3")

    tried = gullak("status", "--json")
    shop.run("UPDATE webhook_deliveries SET status = 'dead'")
    dead = gullak("status", "--json")

    assert (tried.code, tried.json["webhooks"]) == (0, {"dead": 0, "pending": 1, "failing": 1})
    assert (dead.code, dead.json["look_at"]) == (1, ["webhooks"])
    assert dead.json["webhooks"] == {"dead": 1, "pending": 0, "failing": 0}


@pytest.mark.parametrize(
    ("walk", "state", "look"),
    [
        ("completed_at = now() - interval '70 min'", "no fault, 70 min ago", []),
        ("completed_at = now() - interval '3 h'", "no fault, 180 min ago", ["last verify"]),
        ("fault_count = 2, completed_at = now()", "2 faults", ["last verify"]),
    ],
)
def test_a_ledger_with_faults_or_without_a_check_is_a_fault(
    gullak: Gullak, shop: Shop, walk: str, state: str, look: list[str]
) -> None:
    shop.run(f"UPDATE verify_walk SET {walk}")

    status = gullak("status", "--json")

    assert (status.code, status.json["look_at"]) == (len(look), look)
    assert state in gullak("status").out


def test_an_installation_without_a_check_for_two_hours_is_a_fault(
    gullak: Gullak, shop: Shop
) -> None:
    shop.run("UPDATE businesses SET created_at = now() - interval '3 h'")

    assert gullak("status", "--json").json["look_at"] == ["last verify"]


def test_without_redis_the_buffer_is_unknown_and_the_rest_is_shown(
    gullak: Gullak, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.enter(5)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")

    status = gullak("status", "--json")

    assert (status.code, status.json["look_at"]) == (1, ["buffer"])
    assert status.json["buffer"] == {"unknown_because": "Redis does not answer (ConnectionError)"}
