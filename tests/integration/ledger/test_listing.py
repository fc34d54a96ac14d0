"""The entries of all wallets of a customer, a page at a time, while they grow."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Connection, event, text

from metering.errors import NotFoundError, UnsupportedCurrencyError
from metering.ids import Currency, CustomerId, EntryId
from metering.ledger.businesses import create_business
from metering.ledger.entry import Entry, EventType, Posting
from metering.ledger.listing import EntryFilter, list_entries
from metering.ledger.plan import plan_entries
from metering.ledger.post import _move, _write, lock_wallets
from support.tenant import Shop
from support.tenant import event as usage_event

START = datetime(2026, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
EVERYTHING = EntryFilter()
MANY = 1500


@pytest.fixture(scope="module")
def database_url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture(scope="module")
def long_list(module_shop: Shop) -> list[Entry]:
    """Many entries of both wallets of the module's customer, newest first."""
    return two_wallets(module_shop, MANY)


class Line(NamedTuple):
    """An entry with a time in microseconds after START."""

    moment: int
    currency: str = "USD"
    event_type: EventType = "merchant_adjustment"


def at(moment: int) -> datetime:
    return START + moment * MICROSECOND


def write(shop: Shop, *lines: Line) -> list[Entry]:
    """Write credits of the first customer at chosen moments; return them as written."""
    wallet_ids = {line.currency: shop.wallet(currency=line.currency).wallet_id for line in lines}
    written: list[Entry] = []
    with shop.sessions.transaction() as conn:
        wallets = lock_wallets(conn, set(wallet_ids.values()))
        for line in lines:
            posting = Posting(
                wallet_id=wallet_ids[line.currency],
                kind="manual" if line.event_type == "merchant_adjustment" else "purchase",
                is_credit=True,
                amount_minor=1,
                event_type=line.event_type,
            )
            entries, wallets = plan_entries(wallets, [posting], at(line.moment))
            written += entries
        _write(conn, written)
        _move(conn, list(wallets.values()), written[-1].created_at)
    return written


def two_wallets(shop: Shop, moments: int) -> list[Entry]:
    """Write an entry of both wallets at every moment; return all, newest first."""
    lines = [Line(moment, currency) for moment in range(moments) for currency in ("USD", "INR")]
    return newest_first(write(shop, *lines))


def newest_first(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=place, reverse=True)


def place(entry: Entry) -> tuple[datetime, str, int]:
    return entry.created_at, entry.wallet_id, entry.version


def ids(entries: list[Entry]) -> list[EntryId]:
    return [entry.entry_id for entry in entries]


def listed(
    shop: Shop, wanted: EntryFilter = EVERYTHING, *, page: int = 1000, offset: int = 0,
    after: str | None = None, customer_id: str | None = None,
) -> list[Entry]:  # fmt: skip
    with shop.sessions.transaction() as conn:
        return list_entries(
            conn,
            shop.business_id,
            CustomerId(shop.customers[0] if customer_id is None else customer_id),
            wanted,
            page=page,
            offset=offset,
            after=None if after is None else EntryId(after),
        )


def by_cursor(shop: Shop, wanted: EntryFilter, page: int) -> list[EntryId]:
    seen: list[EntryId] = []
    while found := listed(shop, wanted, page=page, after=seen[-1] if seen else None):
        seen += ids(found)
    return seen


def by_number(shop: Shop, wanted: EntryFilter, page: int) -> list[EntryId]:
    seen: list[EntryId] = []
    while found := listed(shop, wanted, page=page, offset=len(seen)):
        seen += ids(found)
    return seen


# --- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [1, 7, 50, 100])
@pytest.mark.parametrize("currency", [None, "USD"])
def test_pages_by_number_and_by_cursor_hold_all_entries_newest_first(
    shop: Shop, page: int, currency: str | None
) -> None:
    written = two_wallets(shop, 25)
    wanted = EntryFilter(currency=None if currency is None else Currency(currency))
    expected = ids([entry for entry in written if currency in (None, entry.currency)])

    assert by_number(shop, wanted, page) == expected
    assert by_cursor(shop, wanted, page) == expected


def test_entries_of_both_currencies_are_merged_by_time(shop: Shop) -> None:
    written = write(shop, Line(1, "INR"), Line(2, "USD"), Line(3, "USD"), Line(4, "INR"))

    assert ids(listed(shop)) == ids(written)[::-1]


def test_an_entry_is_listed_as_it_was_written(shop: Shop) -> None:
    written = write(shop, Line(1, "USD", "payment"))

    assert listed(shop) == written


def test_usage_below_a_minor_unit_is_listed_too(shop: Shop) -> None:
    shop.meter()
    shop.send(usage_event(shop.customers[0], {"tokens": 1}))
    shop.drain()

    (entry,) = listed(shop)

    assert (entry.kind, entry.amount_minor, entry.event_count) == ("usage", 0, 1)


def test_a_customer_without_entries_has_an_empty_list(shop: Shop) -> None:
    assert listed(shop) == []
    assert listed(shop, EntryFilter(created_at_gte=START, created_at_lte=START)) == []


def test_a_page_after_the_oldest_entry_is_empty(shop: Shop) -> None:
    written = two_wallets(shop, 3)

    assert listed(shop, offset=6) == []
    assert listed(shop, EntryFilter(currency=Currency("USD")), offset=10**9) == []
    assert listed(shop, after=written[-1].entry_id) == []


@pytest.mark.parametrize("currency", [None, "INR"])
def test_entries_added_between_two_pages_do_not_shift_a_cursor(
    shop: Shop, currency: str | None
) -> None:
    written = two_wallets(shop, 10)
    wanted = EntryFilter(currency=None if currency is None else Currency(currency))
    expected = ids([entry for entry in written if currency in (None, entry.currency)])
    seen: list[EntryId] = []

    while found := listed(shop, wanted, page=3, after=seen[-1] if seen else None):
        seen += ids(found)
        shop.enter(1, currency="USD")
        shop.enter(1, currency="INR")

    assert seen == expected


def test_a_page_deep_in_one_wallet_has_the_right_entries(
    module_shop: Shop, long_list: list[Entry]
) -> None:
    usd = ids([entry for entry in long_list if entry.currency == "USD"])

    for offset in (0, 1, MANY - 10, MANY - 1):
        found = listed(module_shop, EntryFilter(currency=Currency("USD")), page=10, offset=offset)

        assert ids(found) == usd[offset : offset + 10], offset


def test_a_page_deep_in_two_wallets_has_the_right_entries(shop: Shop) -> None:
    written = two_wallets(shop, 500)

    assert ids(listed(shop, page=10, offset=900)) == ids(written)[900:910]


# --- access -------------------------------------------------------------------------------------


@pytest.mark.parametrize("customer_id", ["cus_none", ""])
def test_an_unknown_customer_is_not_found(shop: Shop, customer_id: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        listed(shop, customer_id=customer_id)

    assert (caught.value.kind, caught.value.object_id) == ("customer", customer_id)


def test_a_customer_of_another_business_is_not_found(shop: Shop) -> None:
    two_wallets(shop, 1)
    with shop.sessions.transaction() as conn:
        other = Shop(shop.sessions, shop.buffer, create_business(conn, "Other"))
        other.add_customer(conn)

    with pytest.raises(NotFoundError):
        listed(other, customer_id=shop.customers[0])


def test_a_list_shows_only_one_customer(shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    shop.enter(5, customer=1)

    assert listed(shop) == []


def test_an_entry_of_another_customer_is_refused_as_a_cursor(shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    entry = shop.enter(5, customer=1).entry_id

    with pytest.raises(NotFoundError):
        listed(shop, after=entry)


@pytest.mark.parametrize("after", ["ent_none", ""])
def test_a_cursor_that_is_not_an_entry_is_not_found(shop: Shop, after: str) -> None:
    with pytest.raises(NotFoundError):
        listed(shop, after=after)


@pytest.mark.parametrize(
    ("customer_id", "after"), [("x\0", None), (None, "x\0")], ids=["customer_id", "after"]
)
def test_an_id_with_nul_is_not_found(
    shop: Shop, customer_id: str | None, after: str | None
) -> None:
    with pytest.raises(NotFoundError):
        listed(shop, customer_id=customer_id, after=after)


@pytest.mark.parametrize("currency", ["EUR", "usd", "\0"])
def test_a_currency_without_a_wallet_is_refused(shop: Shop, currency: str) -> None:
    with pytest.raises(UnsupportedCurrencyError):
        listed(shop, EntryFilter(currency=Currency(currency)))


# --- filters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [1, 3, 100])
@pytest.mark.parametrize("currency", [None, "USD"])
@pytest.mark.parametrize("event_type", ["merchant_adjustment", "payment", "refund", "dispute"])
def test_a_type_filter_finds_all_entries_of_the_type(
    shop: Shop, page: int, currency: str | None, event_type: EventType
) -> None:
    types: list[EventType] = ["merchant_adjustment", "payment", "merchant_adjustment", "refund"]
    written = newest_first(
        write(
            shop,
            *(
                Line(moment, name, types[(moment + shift) % 4])
                for moment in range(12)
                for shift, name in enumerate(("USD", "INR"))
            ),
        )
    )
    wanted = EntryFilter(
        event_type=event_type, currency=None if currency is None else Currency(currency)
    )
    expected = ids(
        [
            entry
            for entry in written
            if entry.event_type == event_type and currency in (None, entry.currency)
        ]
    )

    assert by_number(shop, wanted, page) == expected
    assert by_cursor(shop, wanted, page) == expected


@pytest.mark.parametrize("currency", [None, "USD"])
@pytest.mark.parametrize(
    ("gte", "lte"),
    [(0, 9), (3, 6), (4, 4), (-5, 2), (7, 99), (-9, -1), (10, 99), (6, 3), (None, 4), (4, None)],
)
def test_the_time_filter_includes_both_bounds(
    shop: Shop, currency: str | None, gte: int | None, lte: int | None
) -> None:
    written = two_wallets(shop, 10)
    wanted = EntryFilter(
        currency=None if currency is None else Currency(currency),
        created_at_gte=None if gte is None else at(gte),
        created_at_lte=None if lte is None else at(lte),
    )
    first, last = at(-99 if gte is None else gte), at(99 if lte is None else lte)
    expected = ids(
        [
            entry
            for entry in written
            if first <= entry.created_at <= last and currency in (None, entry.currency)
        ]
    )

    assert by_number(shop, wanted, 3) == expected
    assert by_cursor(shop, wanted, 3) == expected


def test_a_bound_at_the_end_of_time_works(shop: Shop) -> None:
    written = two_wallets(shop, 2)
    first, last = (
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    )

    assert listed(shop, EntryFilter(created_at_lte=first)) == []
    assert listed(shop, EntryFilter(created_at_gte=last)) == []
    assert ids(listed(shop, EntryFilter(created_at_gte=first, created_at_lte=last))) == ids(written)


# --- cost ---------------------------------------------------------------------------------------


def plans(conn: Connection, statements: list[tuple[str, Any]]) -> str:
    return "\n".join(
        str(line)
        for statement, values in statements
        for (line,) in conn.exec_driver_sql(f"EXPLAIN {statement}", values)
    )


FILTERS = [
    EntryFilter(
        currency=currency, event_type=type_, created_at_gte=at(10), created_at_lte=at(MANY - 10)
    )
    for currency in (None, Currency("USD"))
    for type_ in (None, "merchant_adjustment", "payment")
]


def test_no_list_reads_the_whole_ledger(module_shop: Shop, long_list: list[Entry]) -> None:
    shop = module_shop
    seen: list[tuple[str, Any]] = []

    def keep(_conn: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        seen.append((statement, values))

    with shop.sessions.transaction() as conn:
        conn.execute(text("ANALYZE ledger_entries"))
    for wanted in FILTERS:
        seen.clear()
        with shop.sessions.transaction() as conn:
            after = long_list[99].entry_id
            event.listen(conn, "before_cursor_execute", keep)
            list_entries(conn, shop.business_id, shop.customers[0], wanted, page=10, after=after)
            event.remove(conn, "before_cursor_execute", keep)
            plan = plans(conn, seen)

        assert "ledger_entries" in plan, wanted
        assert "Seq Scan on ledger_entries" not in plan, wanted


def test_the_pages_of_a_long_list_are_ordered_by_time(
    module_shop: Shop, long_list: list[Entry]
) -> None:
    found = listed(module_shop, page=1000, offset=1200)

    assert ids(found) == ids(long_list[1200:2200])
    assert all(place(newer) > place(older) for newer, older in pairwise(found))


def test_entries_with_equal_times_keep_the_order_in_which_they_were_written(shop: Shop) -> None:
    written = newest_first(
        write(shop, *(Line(0, currency) for _ in range(4) for currency in ("USD", "INR")))
    )

    assert by_cursor(shop, EVERYTHING, 3) == ids(written)
    assert by_number(shop, EVERYTHING, 3) == ids(written)
