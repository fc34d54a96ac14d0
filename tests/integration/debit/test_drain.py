"""The drain on real Redis and Postgres: every event ends once: posted, duplicate or refused."""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

import orjson
import psycopg
import pytest
from redis.typing import EncodableT, FieldT
from sqlalchemy import event as sqlalchemy_event

from metering.buffer.chunk import BufferedEvent, encode_chunk
from metering.buffer.keys import Shard, stream_key
from metering.buffer.stream import UsageBuffer
from metering.clock import to_wire
from metering.debit.write import Outcome
from metering.errors import ShardMismatchError
from metering.ids import BusinessId
from metering.usage.refused import Selection, refused_events, replay
from support.tenant import Shop, event
from worker.context import open_buffer
from worker.session import Sessions
from worker.settings import Settings


def test_a_batch_debits_each_wallet_once_and_carries_the_remainder(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "0.25"})
    shop.send(*(event(shop.customers[0], {"tokens": 3}) for _ in range(3)))

    shop.drain()

    (entry,) = shop.entries()
    assert (entry.amount_minor, entry.exact_cost, entry.event_count) == (2, Decimal("2.25"), 3)
    assert (shop.wallet().balance_minor, shop.wallet().remainder) == (-2, Decimal("0.25"))


def test_the_remainder_goes_to_the_next_debit(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "0.25"})
    for _ in range(4):
        shop.send(event(shop.customers[0], {"tokens": 1}))
        shop.drain()

    assert [entry.amount_minor for entry in shop.entries()] == [1, 0, 0, 0]
    assert shop.wallet().remainder == 0


@pytest.mark.parametrize("batch_events", [1, 7, 10_000])
def test_the_split_into_batches_changes_no_total(shop: Shop, batch_events: int) -> None:
    shop.meter("tokens", {"USD": "0.333333333333"}, units=1000)
    for first in range(0, 60, 3):
        chunk = [event(shop.customers[0], {"tokens": n + 1}) for n in range(first, first + 3)]
        shop.send(*chunk)

    shop.drain(batch_events)

    assert shop.charged() == Decimal("0.000333333333333") * sum(range(1, 61))


def test_an_event_sent_twice_in_a_chunk_across_chunks_and_later_is_charged_once(
    shop: Shop,
) -> None:
    shop.meter("tokens", {"USD": "1"})
    once = event(shop.customers[0], {"tokens": 5})
    shop.send(once, once)
    shop.send(once)

    first = shop.drain()
    shop.send(once)
    second = shop.drain()

    assert (first.posted, first.duplicate, second.duplicate) == (1, 2, 1)
    assert shop.wallet().balance_minor == -5


@pytest.mark.parametrize("where", ["in one batch", "later"])
def test_an_event_id_with_other_content_is_a_conflict_and_charges_nothing(
    shop: Shop, where: str
) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(event(shop.customers[0], {"tokens": 5}, event_id="same"))
    if where == "later":
        shop.drain()
    shop.send(event(shop.customers[0], {"tokens": 6}, event_id="same"))

    shop.drain()

    with shop.sessions.transaction() as conn:
        (refused,) = refused_events(conn, Selection(), page=10)
    assert refused.reason == "conflict"
    assert shop.wallet().balance_minor == -5


def test_two_businesses_may_use_the_same_event_id(sessions: Sessions, buffer: UsageBuffer) -> None:
    shops = [Shop.open(sessions, buffer, name=name) for name in ("Acme", "Bolt")]
    for shop in shops:
        shop.meter("tokens", {"USD": "1"})
        shop.send(event(shop.customers[0], {"tokens": 5}, event_id="same"))

    shops[0].drain()

    assert [shop.wallet().balance_minor for shop in shops] == [-5, -5]


def test_a_customer_of_another_business_is_unknown(sessions: Sessions, buffer: UsageBuffer) -> None:
    ours, theirs = (Shop.open(sessions, buffer, name=name) for name in ("Acme", "Bolt"))
    theirs.meter("tokens", {"USD": "1"})
    ours.send(event(theirs.customers[0]))

    outcome = ours.drain()

    assert (outcome.refused, theirs.wallet().version) == (1, 0)


BAD = {
    "unknown_customer": lambda _shop: event("cus_nobody"),
    "bad_quantity": lambda shop: event(shop.customers[0], {"tokens": "many"}),
    "unpostable": lambda shop: event(shop.customers[0], {"tokens": 1}, event_id="nul\0"),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_event_is_dead_lettered_with_its_reason_and_the_rest_posts(
    shop: Shop, reason: str
) -> None:
    shop.meter("tokens", {"USD": "1"})
    good = [event(shop.customers[0], {"tokens": 2}) for _ in range(10)]
    shop.send(*good[:5], BAD[reason](shop), *good[5:])

    outcome = shop.drain()

    with shop.sessions.transaction() as conn:
        (refused,) = refused_events(conn, Selection(), page=10)
    assert (outcome.posted, outcome.refused, refused.reason) == (10, 1, reason)
    assert (shop.wallet().balance_minor, shop.faults()) == (-20, [])


@pytest.mark.parametrize("metadata", [{}, {"tokens": True}, {"tokens": -1}, {"tokens": 10**13}])
def test_an_event_without_a_valid_quantity_is_refused(
    shop: Shop, metadata: dict[str, str | int | float | bool]
) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(
        BufferedEvent(
            "evt", shop.customers[0], "llm.completion", to_wire(datetime.now(UTC)), metadata
        )
    )

    outcome = shop.drain()

    assert (outcome.posted, outcome.refused) == (0, 1)


def test_unreadable_bytes_become_a_dead_letter_and_the_shard_goes_on(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.buffer.redis.xadd(stream_key(Shard(0)), {"b": "?", "n": "2", "e": "not json"})
    shop.send(event(shop.customers[0], {"tokens": 2}))

    outcome = shop.drain()

    with shop.sessions.transaction() as conn:
        (refused,) = refused_events(conn, Selection(), page=10)
    assert (outcome.posted, refused.reason, shop.buffer.backlog().busy) == (1, "malformed", ())


def test_a_replay_after_the_cause_is_gone_charges_a_dead_letter_once(shop: Shop) -> None:
    shop.send(event(shop.customers[0], {"calls": 1}), event(shop.customers[0], {"tokens": 4}))
    shop.meter("tokens", {"USD": "1"})
    shop.drain()
    shop.rows("UPDATE meters SET aggregation_key = 'calls' RETURNING 1")
    shop.rows("UPDATE businesses SET rate_card_version = rate_card_version + 1 RETURNING 1")

    sent = replay(shop.sessions.transaction, shop.buffer, Selection(reason="bad_quantity"))
    outcome = shop.drain()

    assert (sent, outcome.posted, shop.wallet().balance_minor) == (1, 1, -5)
    with shop.sessions.transaction() as conn:
        assert refused_events(conn, Selection(), page=10) == []


def test_a_repeated_refused_event_is_one_dead_letter(shop: Shop) -> None:
    lost = event("cus_nobody")
    shop.send(lost)
    shop.drain()
    shop.send(lost)

    outcome = shop.drain()

    assert (outcome.refused, outcome.duplicate) == (0, 1)


def test_a_repeated_charged_event_is_a_duplicate_even_if_it_cannot_be_charged_any_more(
    shop: Shop,
) -> None:
    meter = shop.meter("tokens", {"USD": "1"})
    charged = event(shop.customers[0], {"tokens": 1})
    shop.send(charged)
    shop.drain()
    shop.rows(
        f"UPDATE customers SET billing_currency = 'INR' WHERE '{meter.meter_id}' <> '' RETURNING 1"
    )
    shop.send(charged)

    outcome = shop.drain()

    assert (outcome.duplicate, outcome.refused) == (1, 0)


def test_an_event_is_priced_at_its_timestamp(shop: Shop) -> None:
    meter = shop.meter("tokens", {"USD": "1"})
    change = datetime(2026, 6, 1, tzinfo=UTC)
    with shop.sessions.transaction() as conn:
        shop.price(conn, meter, "USD", "3", effective_from=change)
    shop.send(
        event(shop.customers[0], {"tokens": 1}, at="2026-05-31T23:59:59.999999Z"),
        event(shop.customers[0], {"tokens": 1}, at=to_wire(change)),
    )

    shop.drain()

    assert shop.wallet().balance_minor == -4


def test_each_customer_pays_in_its_billing_currency(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1", "INR": "80"})
    with shop.sessions.transaction() as conn:
        indian = shop.add_customer(conn, billing="INR")
    shop.send(event(shop.customers[0]), event(indian))

    shop.drain()

    assert (shop.wallet(0, "USD").balance_minor, shop.wallet(0, "INR").version) == (-1, 0)
    assert (shop.wallet(1, "INR").balance_minor, shop.wallet(1, "USD").version) == (-80, 0)


def test_usage_in_a_billing_currency_without_a_price_is_refused_until_there_is_one(
    shop: Shop,
) -> None:
    shop.meter("tokens", {"USD": "1"})
    with shop.sessions.transaction() as conn:
        indian = shop.add_customer(conn, billing="INR")
    shop.send(event(indian))

    outcome = shop.drain()

    assert (outcome.refused, shop.wallet(1, "USD").version) == (1, 0)


def test_a_chunk_read_again_after_its_commit_charges_nothing_and_counts_as_replayed(
    shop: Shop,
) -> None:
    shop.meter("tokens", {"USD": "1"})
    bad = event(shop.customers[0], {"tokens": "many"})
    shop.send(*(event(shop.customers[0]) for _ in range(5)), bad)

    def die_before_trim(point: str) -> None:
        if point == "before_trim":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shop.drain(checkpoint=die_before_trim)
    outcome = shop.drain()

    assert (outcome.posted, outcome.duplicate, outcome.replayed) == (0, 0, 6)
    assert (shop.wallet().balance_minor, shop.faults()) == (-5, [])


def test_a_drain_after_flushall_reports_the_loss_and_goes_on(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(event(shop.customers[0]))
    shop.drain()
    shop.buffer.redis.flushall()
    shop.send(event(shop.customers[0]))

    shop.drain()

    assert (shop.wallet().balance_minor, shop.faults()) == (-2, [])


def test_a_chunk_that_is_missing_in_the_stream_is_reported_as_lost(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(event(shop.customers[0]), event(shop.customers[0]))
    for shard in shop.buffer.shards:
        shop.buffer.redis.delete(stream_key(shard))
    shop.send(event(shop.customers[0]))

    shop.drain()

    (fault,) = shop.faults()
    assert fault.invariant == "no accepted event was lost"
    assert "2 accepted events are gone" in fault.detail


def test_two_drains_of_the_same_events_at_once_charge_them_once(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    for _ in range(20):
        shop.send(*(event(shop.customers[0]) for _ in range(20)))
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(shop.drain(50))) for _ in range(4)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes.append(shop.drain())

    assert sum(outcome.posted for outcome in outcomes) == 400
    assert (shop.wallet().balance_minor, shop.faults()) == (-400, [])


def test_duplicates_in_two_shards_at_once_neither_deadlock_nor_charge_twice(
    sessions: Sessions, buffer: UsageBuffer
) -> None:
    """The same ids, for customers of different shards: the second of each pair is a conflict."""
    shop = Shop.open(sessions, buffer, customers=16)
    shop.meter("tokens", {"USD": "1"})
    for customer in shop.customers:
        shop.send(*(event(customer, event_id=f"shared-{n}") for n in range(200)))
    threads = [threading.Thread(target=shop.drain, args=(500,)) for _ in range(3)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shop.drain()

    assert shop.rows("SELECT sum(posted_count), sum(refused_count) FROM usage_batches") == [
        (200, 15 * 200)
    ]
    assert shop.faults() == []


def test_the_number_of_statements_does_not_grow_with_the_batch(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    with shop.sessions.transaction() as conn:
        for _ in range(49):
            shop.add_customer(conn)

    def statements_of(events: list[BufferedEvent]) -> int:
        for made in events:
            shop.send(made)
        counted: list[str] = []
        listen = lambda *args: counted.append(args[2])  # noqa: E731
        sqlalchemy_event.listen(shop.sessions.engine, "before_cursor_execute", listen)
        reports = shop.drain_reports()
        sqlalchemy_event.remove(shop.sessions.engine, "before_cursor_execute", listen)
        batches = sum(report.batches for report in reports)
        return round((len(counted) - len(reports) - batches) / batches)

    small = statements_of([event(shop.customers[0])])
    statements_of([event(customer) for customer in shop.customers])
    large = statements_of([event(customer) for customer in shop.customers for _ in range(20)])

    assert large <= small


def test_a_batch_that_kills_its_workers_is_halved_until_the_bad_chunk_is_alone(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    for _ in range(8):
        shop.send(event(shop.customers[0]))
    (shard,) = shop.buffer.backlog().busy
    head = shop.buffer.read_head(shard, 10_000)
    for _ in range(4):
        shop.buffer.begin(shard, head[0].stream_id)

    first = shop.drain_reports()[shard]

    assert first.batches == 2  # 8 >> 3 chunks, then the rest
    assert shop.wallet().balance_minor == -8


def test_a_chunk_that_kills_every_worker_ends_in_the_dead_letters(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(event(shop.customers[0]))
    (shard,) = shop.buffer.backlog().busy
    head = shop.buffer.read_head(shard, 10_000)
    for _ in range(25):
        shop.buffer.begin(shard, head[0].stream_id)

    outcome = shop.drain()

    assert (outcome.refused, shop.wallet().version, shop.buffer.backlog().busy) == (1, 0, ())


def test_a_temporary_database_error_keeps_the_head(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(event(shop.customers[0]))

    def deadlock(point: str) -> None:
        if point == "after_copy":
            raise psycopg.errors.DeadlockDetected

    with pytest.raises(psycopg.errors.DeadlockDetected):
        shop.drain(checkpoint=deadlock)
    outcome = shop.drain()

    assert (outcome.posted, outcome.replayed, shop.wallet().balance_minor) == (1, 0, -1)


def test_texts_with_backslashes_and_escapes_are_stored_unchanged(shop: Shop) -> None:
    odd = {"path": "C:\\new\\table", "quote": '"', "tab": "a\tb", "line": "a\nb", "N": "\\N"}
    shop.meter(None)
    shop.send(event(shop.customers[0], odd, event_id="back\\slash"))

    shop.drain()

    ((event_id, metadata),) = shop.rows("SELECT event_id, metadata::text FROM usage_events")
    assert (event_id, orjson.loads(str(metadata))) == ("back\\slash", odd)


def test_a_dead_letter_that_is_refused_again_during_its_replay_stays_visible(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.send(event("cus_nobody"))
    shop.drain()
    append = shop.buffer.append

    def append_and_drain(business_id: BusinessId, events: Sequence[BufferedEvent]) -> None:
        append(business_id, events)
        shop.drain()

    monkeypatch.setattr(shop.buffer, "append", append_and_drain)
    replay(shop.sessions.transaction, shop.buffer, Selection())

    with shop.sessions.transaction() as conn:
        assert len(refused_events(conn, Selection(), page=10)) == 1


def test_a_process_with_another_number_of_shards_fails_before_it_appends(
    shop: Shop, config: Settings
) -> None:
    shop.send(event(shop.customers[0]))
    other = open_buffer(config.model_copy(update={"shards": 8}))

    with pytest.raises(ShardMismatchError, match="16 shards, this process is set to 8"):
        other.append(shop.business_id, [event(shop.customers[0])])
    with pytest.raises(ShardMismatchError):
        other.backlog()

    other.redis.close()


def test_an_empty_buffer_takes_a_new_number_of_shards(shop: Shop, config: Settings) -> None:
    shop.send(event(shop.customers[0]))
    shop.drain()
    other = open_buffer(config.model_copy(update={"shards": 8}))

    other.append(shop.business_id, [event(shop.customers[0])])

    assert other.backlog().events == 1
    other.redis.close()


Fields = dict[FieldT, EncodableT]
FORGED = {
    "a key with blanks": lambda line: b" " + line[1:],
    "a key in capitals": lambda line: b"A" + line[1:],
    "a digest too long": lambda line: line.replace(b"\t", b"\t9999999999", 1),
    "metadata too deep": lambda line: line.rpartition(b"\t")[0] + b"\t" + b"[" * 300 + b"]" * 300,
    "metadata that is no object": lambda line: line.rpartition(b"\t")[0] + b"\t[]",
    "a customer with NUL": lambda line: line.replace(b"\tcus_", b"\tcus_\0", 1),
    "a time that is none": lambda line: line.replace(b"\t20", b"\tsoon", 1),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_line_ends_in_the_dead_letters_and_does_not_block_its_shard(
    shop: Shop, forgery: str
) -> None:
    shop.meter("tokens", {"USD": "1"})
    line = encode_chunk(shop.business_id, [event(shop.customers[0])])
    fields: Fields = {"b": shop.business_id, "n": 1, "t": 1, "e": FORGED[forgery](line)}
    shop.send(event(shop.customers[0]))
    (shard,) = shop.buffer.backlog().busy
    shop.buffer.redis.xadd(stream_key(shard), fields)
    shop.send(event(shop.customers[0]))

    outcome = shop.drain()

    assert (outcome.posted, outcome.refused, shop.buffer.backlog().busy) == (2, 1, ())


@pytest.mark.parametrize(
    "fields",
    [
        {"junk": "x"},
        {"b": "\0", "n": "1", "t": "1", "e": "x"},
        {"b": "b" * 100_000, "n": "9" * 5000, "t": "9" * 5000, "e": "x"},
    ],
)
def test_a_foreign_entry_does_not_block_its_shard(shop: Shop, fields: Fields) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.buffer.redis.xadd(stream_key(Shard(0)), fields)
    shop.send(event(shop.customers[0]))

    outcome = shop.drain()

    assert (outcome.posted, shop.buffer.backlog().busy) == (1, ())


def test_only_events_that_would_exceed_the_range_of_their_wallet_are_refused(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "99999"})
    with shop.sessions.transaction() as conn:
        other = shop.add_customer(conn)
    shop.send(*(event(shop.customers[0], {"tokens": 10**12}) for _ in range(100)), event(other))

    outcome = shop.drain()

    assert (outcome.posted, outcome.refused) == (1, 100)
    assert shop.wallet(1).balance_minor == -99999


def test_the_next_sweep_corrects_the_backlog_of_deleted_streams(shop: Shop) -> None:
    shop.send(event(shop.customers[0]))
    for shard in shop.buffer.shards:
        shop.buffer.redis.delete(stream_key(shard))

    shop.buffer.sweep()

    assert (shop.buffer.backlog().events, shop.buffer.backlog().bytes) == (0, 0)
