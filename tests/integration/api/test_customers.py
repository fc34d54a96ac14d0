"""Reading, changing and listing the customers of a business."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import text

from metering.errors import NotFoundError, UnsupportedCurrencyError
from metering.ids import BusinessId, CustomerId
from metering.ledger.businesses import create_business
from metering.ledger.customers import (
    Customer,
    CustomerChange,
    CustomerFilter,
    NewCustomer,
    create_customer,
    get_customer,
    list_customers,
    update_customer,
)
from support.tenant import CURRENCIES, Shop, at_once, pool_of, shared_database
from worker.session import Sessions

START = datetime(2026, 1, 1, tzinfo=UTC)
EVERYBODY = CustomerFilter()


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "customers") as name:
        yield servers.url_of(name)


def add(shop: Shop, name: str = "A", email: str = "a@example.com", **more: Any) -> CustomerId:
    with shop.sessions.transaction() as conn:
        new = NewCustomer(email=email, name=name, **more)
        return create_customer(conn, shop.business_id, new, CURRENCIES)


def dated(shop: Shop, *minutes: int) -> list[CustomerId]:
    """Add a customer per number, made so many minutes after START."""
    added = [add(shop, f"C{number}") for number in range(len(minutes))]
    with shop.sessions.transaction() as conn:
        for customer_id, minute in zip(added, minutes, strict=True):
            conn.execute(
                text("UPDATE customers SET created_at = :at WHERE customer_id = :customer_id"),
                {"at": START + timedelta(minutes=minute), "customer_id": customer_id},
            )
    return added


def other_business(shop: Shop) -> Shop:
    with shop.sessions.transaction() as conn:
        return Shop(shop.sessions, shop.buffer, create_business(conn, "Other"))


def read(shop: Shop, customer_id: str) -> Customer:
    with shop.sessions.transaction() as conn:
        return get_customer(conn, shop.business_id, CustomerId(customer_id))


def change(shop: Shop, customer_id: str, **given: Any) -> Customer:
    with shop.sessions.transaction() as conn:
        return update_customer(
            conn, shop.business_id, CustomerId(customer_id), CustomerChange(**given), CURRENCIES
        )


def listed(
    shop: Shop, wanted: CustomerFilter = EVERYBODY, *, page: int = 100, offset: int = 0,
    after: str | None = None,
) -> list[CustomerId]:  # fmt: skip
    cursor = None if after is None else CustomerId(after)
    with shop.sessions.transaction() as conn:
        found = list_customers(
            conn, shop.business_id, wanted, page=page, offset=offset, after=cursor
        )
    return [customer.customer_id for customer in found]


def card_version(shop: Shop) -> object:
    query = f"SELECT rate_card_version FROM businesses WHERE business_id = '{shop.business_id}'"
    return shop.rows(query)[0][0]


# --- one customer -------------------------------------------------------------------------------


def test_a_customer_is_read_as_it_was_made(shop: Shop) -> None:
    metadata = {"plan": "pro", "seats": 3, "trial": False, "share": 0.5}

    customer_id = add(
        shop, "Ada", "ada@example.com", phone_number="+1", preferred_locale="en",
        metadata=metadata, billing_currency="INR",
    )  # fmt: skip

    found = read(shop, customer_id)
    assert (found.customer_id, found.business_id) == (customer_id, shop.business_id)
    assert (found.name, found.email) == ("Ada", "ada@example.com")
    assert (found.phone_number, found.preferred_locale) == ("+1", "en")
    assert (found.metadata, found.billing_currency) == (metadata, "INR")
    assert found.created_at == found.updated_at


@pytest.mark.parametrize("customer_id", ["cus_none", "", "cus\0", "\0"])
def test_an_unknown_id_is_not_found(shop: Shop, customer_id: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        read(shop, customer_id)

    assert (caught.value.kind, caught.value.object_id) == ("customer", customer_id)


def test_a_customer_of_another_business_is_not_found(shop: Shop) -> None:
    foreign = add(other_business(shop))

    with pytest.raises(NotFoundError):
        read(shop, foreign)
    with pytest.raises(NotFoundError):
        change(shop, foreign, name="Mine")
    with pytest.raises(NotFoundError):
        listed(shop, after=foreign)


# --- change -------------------------------------------------------------------------------------


def test_fields_that_are_not_given_stay_unchanged(shop: Shop) -> None:
    customer_id = add(
        shop, phone_number="+1", preferred_locale="en", metadata={"a": 1}, billing_currency="USD"
    )
    before = read(shop, customer_id)

    after = change(shop, customer_id, name="B")

    assert after.name == "B"
    assert after.updated_at > before.updated_at
    kept = ("email", "phone_number", "preferred_locale", "metadata", "billing_currency")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]
    assert after == read(shop, customer_id)


@pytest.mark.parametrize("name", ["phone_number", "preferred_locale", "billing_currency"])
def test_null_removes_an_optional_field_of_a_customer(shop: Shop, name: str) -> None:
    given = {"phone_number": "+1", "preferred_locale": "en", "billing_currency": "USD"}
    customer_id = add(shop, **given)

    after = change(shop, customer_id, **{name: None})

    assert {key: getattr(after, key) for key in given} == {**given, name: None}


@pytest.mark.parametrize("name", ["email", "name", "metadata"])
def test_null_does_not_change_a_required_field_of_a_customer(shop: Shop, name: str) -> None:
    customer_id = add(shop, metadata={"a": 1})

    after = change(shop, customer_id, **{name: None})

    assert (
        getattr(after, name) == {"email": "a@example.com", "name": "A", "metadata": {"a": 1}}[name]
    )


def test_metadata_is_replaced_as_a_whole_and_may_become_empty(shop: Shop) -> None:
    customer_id = add(shop, metadata={"a": 1, "b": 2})

    assert change(shop, customer_id, metadata={"c": 3}).metadata == {"c": 3}
    assert change(shop, customer_id, metadata={}).metadata == {}


@pytest.mark.parametrize(
    "given",
    [
        {"email": ""},
        {"name": "a\0b"},
        {"phone_number": ""},
        {"metadata": {"a b": 1}},
        {"metadata": {"a": float("nan")}},
        {"customer_id": "cus_other"},
    ],
)
def test_an_invalid_change_of_a_customer_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CustomerChange.model_validate(given)


@pytest.mark.parametrize("currency", ["EUR", "usd", "\0"])
def test_a_billing_currency_that_is_not_configured_changes_nothing(
    shop: Shop, currency: str
) -> None:
    customer_id = add(shop)
    before = read(shop, customer_id)

    with pytest.raises(UnsupportedCurrencyError):
        change(shop, customer_id, name="B", billing_currency=currency)

    assert read(shop, customer_id) == before


def test_only_another_billing_currency_invalidates_cached_rate_cards(shop: Shop) -> None:
    customer_id = add(shop, billing_currency="USD")
    before = card_version(shop)

    change(shop, customer_id, name="B")
    change(shop, customer_id, billing_currency="USD")
    unchanged = card_version(shop)
    change(shop, customer_id, billing_currency="INR")

    assert unchanged == before
    assert card_version(shop) != before


def test_a_change_touches_one_customer_only(shop: Shop) -> None:
    customer_id, neighbour = add(shop), add(shop)
    before = read(shop, neighbour)

    change(shop, customer_id, name="B", billing_currency="INR")

    assert read(shop, neighbour) == before


# --- list ---------------------------------------------------------------------------------------


def test_customers_are_listed_newest_first_and_at_equal_times_by_id(shop: Shop) -> None:
    first, second, third, fourth = dated(shop, 1, 3, 2, 3)
    wanted = CustomerFilter(created_at_lte=START + timedelta(days=1))

    assert listed(shop, wanted) == [*sorted([second, fourth], reverse=True), third, first]


@pytest.mark.parametrize("page", [1, 2, 3, 7, 100])
def test_pages_by_number_or_by_cursor_list_all_customers(shop: Shop, page: int) -> None:
    dated(shop, 5, 1, 1, 1, 2, 5, 3)
    everybody = listed(shop)
    by_number: list[CustomerId] = []
    by_cursor: list[CustomerId] = []

    while found := listed(shop, page=page, offset=len(by_number)):
        by_number += found
    while found := listed(shop, page=page, after=by_cursor[-1] if by_cursor else None):
        by_cursor += found

    assert len(everybody) == 8
    assert by_number == by_cursor == everybody


def test_customers_that_are_added_between_pages_do_not_shift_a_cursor(shop: Shop) -> None:
    dated(shop, 1, 2, 3, 4)
    expected = listed(shop)
    seen: list[CustomerId] = []

    while found := listed(shop, page=2, after=seen[-1] if seen else None):
        seen += found
        add(shop)

    assert seen == expected


@pytest.mark.parametrize("after", ["cus_none", "cus\0"])
def test_a_cursor_that_is_not_a_customer_is_not_found(shop: Shop, after: str) -> None:
    with pytest.raises(NotFoundError):
        listed(shop, after=after)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (CustomerFilter(name="ada"), {"Ada Byron", "NADA"}),
        (CustomerFilter(email="EXAMPLE.org"), {"Ada Byron"}),
        (CustomerFilter(name="ada", email="n@"), {"NADA"}),
        (CustomerFilter(name="nobody"), set()),
        (CustomerFilter(name=""), {"Ada Byron", "NADA", "Bob", "A"}),
    ],
)
def test_a_part_of_email_and_name_is_found_in_any_case(
    shop: Shop, wanted: CustomerFilter, names: set[str]
) -> None:
    add(shop, "Ada Byron", "ada@example.org")
    add(shop, "NADA", "n@example.com")
    add(shop, "Bob", "bob@example.com")

    assert {read(shop, customer_id).name for customer_id in listed(shop, wanted)} == names


@pytest.mark.parametrize("part", ["%", "_", "\\", "50%_\\", "\\%"])
def test_wildcards_of_like_are_searched_literally(shop: Shop, part: str) -> None:
    meant = add(shop, f"x{part}y", f"x{part}y@example.com")
    add(shop, "x50abcy", "xzy@example.com")

    assert listed(shop, CustomerFilter(name=part)) == [meant]
    assert listed(shop, CustomerFilter(email=part)) == [meant]


@pytest.mark.parametrize("wanted", [CustomerFilter(name="A\0"), CustomerFilter(email="\0")])
def test_a_filter_with_nul_matches_nothing(shop: Shop, wanted: CustomerFilter) -> None:
    assert listed(shop, wanted) == []


def test_the_time_filter_includes_both_bounds(shop: Shop) -> None:
    _, second, third, _ = dated(shop, 1, 2, 3, 4)
    wanted = CustomerFilter(
        created_at_gte=START + timedelta(minutes=2), created_at_lte=START + timedelta(minutes=3)
    )

    assert listed(shop, wanted) == [third, second]


def test_a_filter_also_holds_with_a_cursor(shop: Shop) -> None:
    first, _, third, fourth = dated(shop, 1, 2, 3, 4)
    change(shop, first, name="Wanted")
    change(shop, fourth, name="Wanted")

    assert listed(shop, CustomerFilter(name="want"), after=third) == [first]


def test_a_list_shows_one_business_only(shop: Shop) -> None:
    add(other_business(shop))

    assert listed(shop) == shop.customers


def test_a_business_without_customers_has_an_empty_list(shop: Shop) -> None:
    nobody = Shop(shop.sessions, shop.buffer, BusinessId("bus_none"))

    assert listed(nobody) == []


def test_two_changes_at_once_do_not_overwrite_each_other(shop: Shop) -> None:
    customer_id = shop.customers[0]

    def change(sessions: Sessions, **fields: str) -> Callable[[], Customer]:
        def work() -> Customer:
            with sessions.transaction() as conn:
                request = CustomerChange.model_validate(fields)
                return update_customer(conn, shop.business_id, customer_id, request, CURRENCIES)

        return work

    with pool_of(shop.sessions, 2) as sessions:
        for turn in range(10):
            name, email = f"Name {turn}", f"{turn}@example.com"
            at_once(change(sessions, name=name), change(sessions, email=email))

            with shop.sessions.transaction() as conn:
                found = get_customer(conn, shop.business_id, customer_id)
            assert (found.name, found.email) == (name, email)


def test_a_language_that_the_sdk_does_not_know_is_refused() -> None:
    with pytest.raises(ValidationError) as refused:
        CustomerChange.model_validate({"preferred_locale": "tlh"})

    assert refused.value.errors()[0]["loc"] == ("preferred_locale",)
