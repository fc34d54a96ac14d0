"""Old and new releases side by side: chunks of a newer release wait for the upgrade."""

import pytest

from metering.buffer.keys import Shard
from metering.buffer.shard import shard_of
from metering.errors import NotFoundError
from metering.usage.balance_of_events import read_balance
from metering.usage.find import find_event
from support.buffer_probe import written_by_a_newer_release
from support.tenant import Shop, event


def buffered(shop: Shop) -> int:
    shard = shard_of(shop.business_id, shop.customers[0], len(shop.buffer.shards))
    return shop.buffer.counters(Shard(shard)).buffered


def test_a_chunk_of_a_newer_release_stays_at_the_head_and_is_read_after_the_upgrade(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.send(event(shop.customers[0], {"tokens": 1}))
    with written_by_a_newer_release():
        shop.send(event(shop.customers[0], {"tokens": 2}))
    shop.send(event(shop.customers[0], {"tokens": 4}))

    reports = [shop.drain_reports() for _ in range(3)]

    (newer,) = [report.newer for report in reports[-1] if report.newer]
    assert "version 2, this worker reads up to 1" in newer.message
    assert (shop.wallet().balance_minor, buffered(shop)) == (-1, 2)
    assert not list(shop.rows("SELECT 1 FROM refused_events"))
    monkeypatch.setattr("metering.buffer.entry.CHUNK_VERSION", 2)
    assert shop.drain().posted == 2
    assert (shop.wallet().balance_minor, buffered(shop)) == (-7, 0)


def test_verify_counts_chunks_of_a_newer_release_and_a_look_up_does_not_misread_them(
    shop: Shop,
) -> None:
    shop.meter("tokens", {"USD": "1"})
    with written_by_a_newer_release():
        shop.send(event(shop.customers[0], {"tokens": 2}, event_id="r-1"))

    balance = read_balance(shop.sessions.snapshot, shop.buffer)

    assert (balance.buffered, list(balance.faults())) == (1, [])
    with pytest.raises(NotFoundError):
        find_event(shop.sessions.transaction, shop.buffer, shop.business_id, "r-1")
