import json
import time

import pytest
from sqlalchemy import text

from metering.buffer.keys import stream_key
from metering.buffer.shard import shard_of
from metering.verify.schedule import continue_walk
from support.command import Gullak
from support.tenant import Shop, event


@pytest.fixture
def traffic(shop: Shop) -> Shop:
    """A business with entries of every kind, refused events, duplicates and buffered events."""
    shop.meter()
    shop.enter(1000, reason="gift")
    shop.enter(5, debit=True, reason="fee")
    customer = shop.customers[0]
    shop.send(*(event(customer, {"tokens": n}, event_id=f"e{n}") for n in range(10)))
    shop.send(event("cus_unknown"), event(customer, {"tokens": 3}, event_id="e3"))
    shop.drain()
    shop.send(event(customer), event(customer))
    return shop


def tamper(shop: Shop, statement: str) -> None:
    """Change a row without triggers, as an administrator could."""
    with shop.sessions.transaction() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text("ALTER TABLE ledger_entries DISABLE TRIGGER ALL"))
        conn.execute(text(statement))


@pytest.mark.usefixtures("traffic")
def test_a_sound_ledger_exits_0_and_shows_where_every_event_ended(gullak: Gullak) -> None:
    result = gullak("verify", "--json")
    events = result.json["events"]
    names = ("accepted", "posted", "duplicate", "refused", "buffered", "lost", "difference")

    assert (result.code, result.json["faults"], result.json["is_sound"]) == (0, [], True)
    assert [events[name] for name in names] == [14, 10, 1, 1, 2, 0, 0]
    table = gullak("verify")
    assert table.code == 0
    assert "no fault" in table.out


def test_a_balance_edited_by_hand_names_the_wallet(gullak: Gullak, traffic: Shop) -> None:
    tamper(traffic, "UPDATE wallets SET balance_minor = balance_minor + 1 WHERE currency = 'USD'")

    result = gullak("verify", "--json")

    assert result.code == 1
    assert traffic.wallet().wallet_id in {f["wallet_id"] for f in result.json["faults"]}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger_entries SET amount_minor = amount_minor + 1, after_minor = after_minor + 1",
        "UPDATE ledger_entries SET reason = 'something else'",
        "UPDATE ledger_entries SET created_at = created_at + interval '1 second'",
    ],
)
def test_an_edited_entry_is_named_with_its_wallet(
    gullak: Gullak, traffic: Shop, change: str
) -> None:
    *_, first = traffic.entries()
    tamper(traffic, f"{change} WHERE entry_id = '{first.entry_id}'")

    result = gullak("verify", "--json")
    named = {(f["wallet_id"], f["entry_id"]) for f in result.json["faults"]}

    assert result.code == 1
    assert (first.wallet_id, first.entry_id) in named
    assert first.entry_id in gullak("verify").out


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_deleted_entry_leaves_a_fault(gullak: Gullak, traffic: Shop, place: str) -> None:
    last, middle, first = traffic.entries()
    gone = {"first": first, "middle": middle, "last": last}[place]
    tamper(traffic, f"DELETE FROM ledger_entries WHERE entry_id = '{gone.entry_id}'")

    result = gullak("verify", "--json")

    assert result.code == 1
    assert gone.wallet_id in {f["wallet_id"] for f in result.json["faults"]}
    if place != "last":
        gaps = [f for f in result.json["faults"] if f["invariant"] == "entries are without gaps"]
        assert f"version {gone.version} is missing" in gaps[0]["detail"]


def test_accepted_events_that_vanish_from_redis_are_a_fault(gullak: Gullak, traffic: Shop) -> None:
    shard = shard_of(traffic.business_id, traffic.customers[0], len(traffic.buffer.shards))
    traffic.buffer.redis.delete(stream_key(shard))

    result = gullak("verify", "--json")

    assert result.code == 1
    assert result.json["events"]["lost"] == 2
    assert f"shard {shard}: 2 accepted events are gone" in json.dumps(result.json["faults"])


def test_a_known_loss_is_accepted_by_name_and_is_no_fault_until_it_grows(
    gullak: Gullak, traffic: Shop
) -> None:
    shard = shard_of(traffic.business_id, traffic.customers[0], len(traffic.buffer.shards))
    traffic.buffer.redis.delete(stream_key(shard))
    (fault,) = gullak("verify", "--json").json["faults"]
    assert gullak("verify", "accept", "flt_0", "--reason", "why not").code == 1

    accepted = gullak("verify", "accept", fault["fault_id"], "--reason", "deleted by hand")
    before_the_drain = gullak("verify", "--json")
    traffic.send(event(traffic.customers[0]))
    traffic.drain()  # from here on the ledger has recorded the loss too
    after_the_drain = gullak("verify", "--json")

    assert accepted.code == 0
    assert fault["fault_id"] in accepted.out
    for result in (before_the_drain, after_the_drain):
        assert (result.code, result.json["faults"], result.json["is_sound"]) == (0, [], True)
        (known,) = result.json["accepted"]
        assert (known["fault_id"], known["reason"]) == (fault["fault_id"], "deleted by hand")
    assert "deleted by hand" in gullak("verify").out
    assert scheduled_faults(traffic) == 0

    traffic.send(event(traffic.customers[0]))
    traffic.buffer.redis.delete(stream_key(shard))
    (grown,) = gullak("verify", "--json").json["faults"]
    assert "3 accepted events are gone" in grown["detail"]


def test_a_fault_is_accepted_only_with_a_reason(gullak: Gullak, traffic: Shop) -> None:
    tamper(traffic, "UPDATE wallets SET balance_minor = balance_minor + 1 WHERE currency = 'USD'")
    fault = gullak("verify", "--json").json["faults"][0]

    assert gullak("verify", "accept", fault["fault_id"], "--reason", " ").code == 1
    assert gullak("verify", "accept", fault["fault_id"]).code == 2
    assert gullak("verify", "--json").json["accepted"] == []


def scheduled_faults(shop: Shop) -> int:
    """Return the number of faults of the scheduled walk."""
    return continue_walk(shop.sessions.snapshot, int(time.time()) + 1, 10_000).fault_count


def test_chunks_that_vanish_before_the_head_are_a_fault(gullak: Gullak, traffic: Shop) -> None:
    shard = shard_of(traffic.business_id, traffic.customers[0], len(traffic.buffer.shards))
    traffic.send(event(traffic.customers[0]))
    entries = traffic.buffer.redis.xrange(stream_key(shard))
    assert entries
    oldest, _ = entries[0]
    assert oldest is not None
    traffic.buffer.redis.xdel(stream_key(shard), oldest)

    events = gullak("verify", "--json").json["events"]

    assert (events["lost"], events["buffered"], events["difference"]) == (2, 1, 0)


def test_events_committed_but_not_trimmed_count_once(gullak: Gullak, traffic: Shop) -> None:
    def die(name: str) -> None:
        if name == "before_trim":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        traffic.drain(checkpoint=die)

    result = gullak("verify", "--json")

    assert result.code == 0
    assert (result.json["events"]["posted"], result.json["events"]["buffered"]) == (12, 0)


def test_settled_events_stay_in_the_balance_after_a_new_epoch_of_redis(
    gullak: Gullak, traffic: Shop
) -> None:
    traffic.drain()
    traffic.buffer.redis.flushall()
    traffic.send(event(traffic.customers[0]))

    result = gullak("verify", "--json")

    assert result.code == 0
    assert (result.json["events"]["accepted"], result.json["events"]["buffered"]) == (15, 1)


@pytest.mark.usefixtures("traffic")
def test_without_redis_the_ledger_is_checked_and_the_balance_is_unknown(
    gullak: Gullak, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hidden@127.0.0.1:1/0")

    result = gullak("verify")

    assert result.code == 1
    assert "events: unknown" in result.out
    assert "no fault" in result.out
    assert "hidden" not in result.out + result.err
