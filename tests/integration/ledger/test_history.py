"""The history of a wallet, a page at a time, while it grows."""

from collections.abc import Iterator
from typing import Any

import pytest

from metering.ids import WalletId
from metering.ledger.entry import Entry, Posting
from metering.ledger.history import PAGE_ENTRIES_MAX, history
from metering.ledger.post import post
from support.tenant import Shop, shared_database


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "histories") as name:
        yield servers.url_of(name)


def add(shop: Shop, entries: int, currency: str = "USD") -> WalletId:
    """Add credits of 1, 2, 3 … to the first customer's wallet."""
    wallet_id = shop.wallet(currency=currency).wallet_id
    with shop.sessions.transaction() as conn:
        post(
            conn,
            [
                Posting(wallet_id=wallet_id, kind="manual", is_credit=True, amount_minor=amount)
                for amount in range(1, entries + 1)
            ],
        )
    return wallet_id


def page_of(
    shop: Shop, wallet_id: WalletId, page: int, before_version: int | None = None
) -> list[Entry]:
    with shop.sessions.transaction() as conn:
        return history(conn, wallet_id, page=page, before_version=before_version)


@pytest.mark.parametrize("page", [7, 50, 250, 1000])
def test_the_pages_together_are_the_whole_history_newest_first(shop: Shop, page: int) -> None:
    wallet_id = add(shop, 250)
    seen: list[int] = []

    before: int | None = None
    while entries := page_of(shop, wallet_id, page, before):
        seen += [entry.version for entry in entries]
        before = seen[-1]

    assert seen == list(range(250, 0, -1))


def test_entries_written_between_two_pages_do_not_shift_the_pages(shop: Shop) -> None:
    wallet_id = add(shop, 250)
    seen: list[int] = []

    before: int | None = None
    while entries := page_of(shop, wallet_id, 40, before):
        seen += [entry.version for entry in entries]
        before = seen[-1]
        add(shop, 7)

    assert seen == list(range(250, 0, -1))


def test_a_page_shows_only_one_wallet(shop: Shop) -> None:
    add(shop, 3, "INR")
    wallet_id = add(shop, 2, "USD")

    assert {entry.currency for entry in page_of(shop, wallet_id, 10)} == {"USD"}


def test_a_wallet_without_entries_has_an_empty_history(shop: Shop) -> None:
    assert page_of(shop, shop.wallet().wallet_id, 10) == []


def test_a_page_after_the_oldest_entry_is_empty(shop: Shop) -> None:
    wallet_id = add(shop, 3)

    assert page_of(shop, wallet_id, 10, before_version=1) == []


@pytest.mark.parametrize(("size", "entries"), [(0, 1), (-5, 1), (1, 1), (10**9, PAGE_ENTRIES_MAX)])
def test_a_page_has_at_least_one_and_at_most_a_thousand_entries(
    shop: Shop, size: int, entries: int
) -> None:
    wallet_id = add(shop, PAGE_ENTRIES_MAX + 1)

    assert len(page_of(shop, wallet_id, size)) == entries


def test_an_entry_is_read_as_it_was_written(shop: Shop) -> None:
    wallet_id = shop.wallet().wallet_id
    posting = Posting(
        wallet_id=wallet_id,
        kind="manual",
        is_credit=True,
        amount_minor=5,
        reason="why",
        reference="ref",
        idempotency_key="key",
        request_digest=b"digest",
        metadata_json='{"a":1,"b":"\\u20b9"}',
    )

    with shop.sessions.transaction() as conn:
        written = post(conn, [posting])

    (entry,) = page_of(shop, wallet_id, 10)
    assert entry.chain == written[0].chain
    assert (entry.reason, entry.reference, entry.request_digest) == ("why", "ref", b"digest")
