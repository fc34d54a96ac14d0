"""The rate of debits, against a bare `COPY` of the same rows into one table."""

from multiprocessing import get_context
from time import perf_counter, sleep

import psycopg

from bed import CURRENCIES, Bed, Market
from metering.buffer.entry import HeadChunk
from metering.debit.batch import key_events
from metering.debit.drain import drain_shard
from metering.debit.prepare import usage_lines
from metering.debit.price import price_events
from metering.debit.resources import Drain
from metering.ids import BatchId, CustomerId
from metering.ledger.wallets import payers
from metering.rate_card.cards import RateCards
from worker.context import open_buffer
from worker.session import Sessions, make_engine
from worker.settings import settings_from
from worker.tuning import tune_process

PROCESSES = 2
IDLE_S = 1.0  # as often as beat sweeps
POLL_S = 0.02
BATCH_EVENTS = 10_000  # of the bare COPY; larger transactions are not faster
BARE = """
DROP TABLE IF EXISTS bare;
CREATE TABLE bare (LIKE usage_events INCLUDING DEFAULTS, event_key uuid NOT NULL UNIQUE);
"""
COPY_BARE = """COPY bare (business_id, event_id, customer_id, event_name, event_at, metadata,
    currency, cost_minor, batch_id, event_key) FROM STDIN"""


def bare_copy_rate(servers: Bed, market: Market, count: int) -> float:
    """Rows per second of one connection that copies prepared bytes.

    The rows have the columns and contents of usage events. Transactions have the same size. The
    table has one unique key.
    """
    market.fill(count)
    batches = [_rows(servers, market, head) for head in _heads(servers)]
    servers.buffer.redis.flushdb()
    with psycopg.connect(servers.config.database_url.get_secret_value(), autocommit=True) as conn:
        conn.execute(BARE)
        started = perf_counter()
        for batch in batches:
            with conn.transaction(), conn.cursor().copy(COPY_BARE) as copy:
                copy.write(batch)
        took = perf_counter() - started
        conn.execute("DROP TABLE bare")
    return count / took


def _heads(servers: Bed) -> list[list[HeadChunk]]:
    """All buffered chunks, in batches as a drain reads them."""
    heads = []
    for shard in servers.buffer.shards:
        after = None
        while head := servers.buffer.read_head(shard, BATCH_EVENTS, after):
            heads.append(head)
            after = head[-1].stream_id
    return heads


def _rows(servers: Bed, market: Market, head: list) -> bytes:  # type: ignore[type-arg]
    keyed, _ = key_events(head)
    cards = RateCards(CURRENCIES)
    with servers.sessions.transaction() as conn:
        current = cards.current(conn, cards.versions(conn, {market.business_id}))
        payer_of = payers(conn, {CustomerId(event.customer_id) for event in keyed})
    priced, _ = price_events(current, payer_of, keyed)
    lines = usage_lines(priced, BatchId(1))
    return "".join(
        f"{line}\t{event.keyed.key}\n" for line, event in zip(lines, priced, strict=True)
    ).encode()


def drain_rate(servers: Bed, market: Market, count: int, hot_share: float = 0.0) -> float:
    """Events per second from a full buffer to committed entries, with two drain processes."""
    market.fund(count, hot_share)
    market.fill(count, hot_share)
    spawn = get_context("spawn")
    ready = spawn.Barrier(PROCESSES + 1)
    urls = {
        "DATABASE_URL": servers.config.database_url.get_secret_value(),
        "REDIS_URL": servers.config.redis_url.get_secret_value(),
    }
    processes = [
        spawn.Process(target=drain_all, args=(urls, number, ready)) for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    ready.wait()
    started = perf_counter()
    while servers.buffer.backlog().events:
        if not any(process.is_alive() for process in processes):
            raise RuntimeError("the drains ended before the buffer was empty")
        sleep(POLL_S)
    took = perf_counter() - started
    for process in processes:
        process.join()
    return count / took


def drain_all(urls: dict[str, str], number: int, ready) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Drain shard after shard until nothing is left, as a worker process does."""
    config = settings_from(urls)
    tune_process()
    engine = make_engine(config)
    buffer = open_buffer(config)
    drain = Drain(Sessions(engine).transaction, buffer, RateCards(CURRENCIES), config.batch_events)
    shards = buffer.shards[number::PROCESSES] + buffer.shards[number - 1 :: PROCESSES]
    buffer.backlog()
    ready.wait()
    while buffer.backlog().busy:
        if not sum(drain_shard(drain, shard, config.drain_slice_s).batches for shard in shards):
            sleep(
                IDLE_S
            )  # the other process drains the rest; a real worker waits for the next sweep
    engine.dispose()
    buffer.redis.close()
