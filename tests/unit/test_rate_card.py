"""The cost of an event: the price in force, the meters that match, the currency that applies."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_UP, Context, Decimal, localcontext
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from metering.accept.event import AcceptLimits
from metering.accept.validate import check_events
from metering.buffer.chunk import Metadata, MetadataValue
from metering.clock import to_wire
from metering.errors import (
    BadQuantityError,
    InvalidInputError,
    NoPriceError,
    UnpricedEventError,
)
from metering.ids import BusinessId, Currency, MeterId, PriceId
from metering.rate_card.card import Cost, OnUnmetered, RateCard, exact_cost
from metering.rate_card.catalogue import Aggregation, Meter, NewPrice, Price, _check_exact
from metering.rate_card.filter import Filter

USD, INR, EUR = Currency("USD"), Currency("INR"), Currency("EUR")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
CHANGE = datetime(2026, 6, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
_ids = count(1)


def meter(
    key: str | None = "tokens",
    *,
    name: str = "call",
    wanted: object = None,
    archived: bool = False,
) -> Meter:
    """A meter that sums `key`, or counts without one; `wanted` limits it to events of that tier."""
    only = {"key": "tier", "operator": "equals", "value": wanted}
    return Meter(
        meter_id=MeterId(f"mtr_{next(_ids)}"),
        business_id=BusinessId("bus_1"),
        name="meter",
        event_name=name,
        measurement_unit="unit",
        aggregation=Aggregation(type="sum", key=key) if key else Aggregation(type="count"),
        description=None,
        filter=Filter.model_validate({"conjunction": "and", "clauses": [only]})
        if wanted is not None
        else None,
        archived_at=LONG_AGO if archived else None,
        created_at=LONG_AGO,
        updated_at=LONG_AGO,
    )


def price(
    of: Meter,
    amount: str,
    currency: Currency = USD,
    *,
    since: datetime = LONG_AGO,
    units: int = 1,
) -> Price:
    return Price(
        price_id=PriceId(f"prc_{next(_ids)}"),
        business_id=of.business_id,
        meter_id=of.meter_id,
        currency=currency,
        price_per_unit=Decimal(amount),
        units=units,
        effective_from=since,
    )


def cost_of(
    meters: Sequence[Meter],
    prices: Sequence[Price],
    metadata: Metadata | None = None,
    *,
    name: str = "call",
    at: datetime = CHANGE,
    billing: Currency | None = None,
) -> tuple[Currency | None, Decimal]:
    found = full_cost(meters, prices, metadata, name=name, at=at, billing=billing)
    assert found.gap is None
    return found.currency, exact_cost(found.mantissa, found.scale)


def full_cost(
    meters: Sequence[Meter],
    prices: Sequence[Price],
    metadata: Metadata | None = None,
    *,
    name: str = "call",
    at: datetime = CHANGE,
    billing: Currency | None = None,
    on_unmetered: OnUnmetered = "refuse",
) -> Cost:
    given_metadata: Metadata = {"tokens": 10} if metadata is None else metadata
    card = RateCard(meters, prices, (USD, INR), on_unmetered)
    return card.cost(name, to_wire(at), given_metadata, billing)


def gap(*args: Any, **options: Any) -> tuple[str, str | None, Currency | None, Decimal]:
    """The reason and meter of a refusal; then currency and cost if such events are kept."""
    with pytest.raises(UnpricedEventError) as refused:
        full_cost(*args, **options)
    kept = full_cost(*args, **options, on_unmetered="keep_free")
    assert kept.gap is not None
    assert (kept.gap.reason, kept.gap.message) == (refused.value.reason, refused.value.message)
    cost = exact_cost(kept.mantissa, kept.scale)
    return refused.value.reason, refused.value.meter_id, kept.currency, cost


def test_a_sum_costs_its_property_times_the_price_of_a_unit() -> None:
    tokens = meter()

    assert cost_of([tokens], [price(tokens, "0.25")]) == (USD, Decimal("2.5"))


def test_a_count_costs_the_price_once_per_event() -> None:
    calls = meter(None)

    assert cost_of([calls], [price(calls, "3")], {}) == (USD, Decimal(3))


def test_a_price_per_many_units_is_divided_exactly() -> None:
    tokens = meter()

    found = cost_of([tokens], [price(tokens, "0.15", units=10**6)], {"tokens": 7})

    assert found == (USD, Decimal("0.00000105"))


@pytest.mark.parametrize(
    ("at", "cost"),
    [
        (LONG_AGO, "10"),
        (LONG_AGO + MICROSECOND, "10"),
        (CHANGE - MICROSECOND, "10"),
        (CHANGE, "20"),
        (CHANGE + MICROSECOND, "20"),
        (CHANGE + timedelta(days=1) - MICROSECOND, "20"),
        (CHANGE + timedelta(days=1), "30"),
        (CHANGE + timedelta(days=3650), "30"),
    ],
)
def test_the_price_in_force_at_the_time_of_the_event_applies(at: datetime, cost: str) -> None:
    tokens = meter()
    prices = [
        price(tokens, "3", since=CHANGE + timedelta(days=1)),
        price(tokens, "1"),
        price(tokens, "2", since=CHANGE),
    ]

    assert cost_of([tokens], prices, at=at) == (USD, Decimal(cost))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8, unique=True), st.integers(-10, 1010))
def test_the_price_in_force_is_the_one_that_began_last(starts: list[int], at: int) -> None:
    tokens = meter()
    prices = [
        price(tokens, str(start + 1), since=LONG_AGO + start * MICROSECOND) for start in starts
    ]

    begun = [start + 1 for start in starts if start <= at]
    if begun:
        found = cost_of([tokens], prices, {"tokens": 1}, at=LONG_AGO + at * MICROSECOND)
        assert found == (USD, max(begun))
    else:
        missing = gap([tokens], prices, {"tokens": 1}, at=LONG_AGO + at * MICROSECOND)
        assert missing == ("no_price", tokens.meter_id, None, 0)


def test_times_with_different_zones_are_compared_in_utc() -> None:
    tokens = meter()
    there = datetime.fromisoformat("2026-06-01T17:30:00+05:30")

    assert cost_of([tokens], [price(tokens, "2", since=there)], at=CHANGE) == (USD, 20)


def test_all_meters_of_an_event_are_summed() -> None:
    tokens, images, calls = meter(), meter("images"), meter(None)
    prices = [price(tokens, "0.1"), price(images, "4"), price(calls, "0.5")]

    found = cost_of([tokens, images, calls], prices, {"tokens": 10, "images": 2})

    assert found == (USD, Decimal("9.5"))


def test_a_meter_whose_filter_does_not_match_adds_nothing() -> None:
    calls, premium = meter(None), meter(None, wanted="premium")
    prices = [price(calls, "1"), price(premium, "10")]

    found = [cost_of([calls, premium], prices, {"tier": tier}) for tier in ("basic", "premium")]

    assert found == [(USD, 1), (USD, 11)]


@pytest.mark.parametrize("filtered", [False, True], ids=["plain", "filtered"])
def test_an_event_that_no_meter_measures_is_not_free_by_omission(*, filtered: bool) -> None:
    calls = meter(None, wanted="premium" if filtered else None)

    found = gap([calls], [price(calls, "1")], {}, name="call" if filtered else "other")

    assert found == ("unmetered", None, None, 0)


def test_an_archived_meter_measures_nothing() -> None:
    calls = meter(None, archived=True)

    assert gap([calls], [price(calls, "1")], {}) == ("unmetered", None, None, 0)


def test_meters_without_any_price_are_not_free_by_omission() -> None:
    tokens = meter()

    assert gap([tokens], []) == ("no_price", tokens.meter_id, None, 0)


@pytest.mark.parametrize("wanted", [None, "a"], ids=["plain", "filtered"])
def test_an_event_from_before_its_meter_s_first_price_is_not_free_by_omission(
    wanted: str | None,
) -> None:
    tokens = meter(wanted=wanted)
    event: Metadata = {"tokens": 10, "tier": "a"}

    found = gap([tokens], [price(tokens, "1")], event, at=LONG_AGO - MICROSECOND)

    assert found == ("no_price", tokens.meter_id, None, 0)


def test_an_event_with_a_part_without_a_price_is_not_free_by_omission() -> None:
    tokens, images = meter(), meter("images")
    prices = [price(tokens, "1"), price(images, "5", since=CHANGE)]
    before: dict[str, Any] = {"at": CHANGE - MICROSECOND}

    found = gap([tokens, images], prices, {"tokens": 10, "images": 1}, **before)

    assert found == ("no_price", images.meter_id, USD, Decimal(10))
    assert cost_of([tokens, images], prices, {"tokens": 10}, **before) == (USD, 10)
    assert cost_of([tokens, images], prices, {"tokens": 10, "images": 0}, **before) == (USD, 10)


def test_an_event_that_adds_only_to_a_meter_without_a_price_is_not_free_by_omission() -> None:
    tokens, images = meter(), meter("images")

    found = gap([tokens, images], [price(tokens, "1")], {"images": 1})

    assert found == ("no_price", images.meter_id, None, 0)


@pytest.mark.parametrize("wanted", [None, "a"], ids=["plain", "filtered"])
def test_a_price_of_zero_is_free_on_purpose(wanted: str | None) -> None:
    tokens = meter(wanted=wanted)

    assert cost_of([tokens], [price(tokens, "0")], {"tokens": 10, "tier": "a"}) == (USD, 0)


def test_the_currency_is_one_with_a_price_at_the_time_of_the_event() -> None:
    tokens = meter()
    prices = [price(tokens, "80", INR), price(tokens, "1", USD, since=CHANGE)]

    found = [cost_of([tokens], prices, at=at) for at in (CHANGE - MICROSECOND, CHANGE)]

    assert found == [(INR, 800), (USD, 10)]


@pytest.mark.parametrize("wanted", [None, "a"], ids=["plain", "filtered"])
def test_an_event_that_adds_to_a_meter_without_any_price_is_not_free_in_part(
    wanted: str | None,
) -> None:
    tokens, calls = meter(wanted=wanted), meter(None, wanted=wanted)
    priced = [price(calls, "1")]

    found = gap([tokens, calls], priced, {"tokens": 10, "tier": "a"})

    assert found == ("no_price", tokens.meter_id, USD, Decimal(1))
    assert cost_of([tokens, calls], priced, {"tokens": 0, "tier": "a"}) == (USD, 1)
    assert cost_of([tokens, calls], priced, {"tier": "a"}) == (USD, 1)
    assert cost_of([tokens, calls], [*priced, price(tokens, "0")], {"tokens": 10, "tier": "a"}) == (
        USD,
        1,
    )


BOTH, USD_ONLY, INR_ONLY = (USD, INR), (USD,), (INR,)


@pytest.mark.parametrize("wanted", [None, "a"], ids=["plain", "filtered"])
@pytest.mark.parametrize(
    ("first", "second", "billing", "currency"),
    [
        (BOTH, BOTH, None, USD),
        (BOTH, BOTH, INR, INR),
        (BOTH, INR_ONLY, None, INR),
        (INR_ONLY, INR_ONLY, None, INR),
        (USD_ONLY, USD_ONLY, USD, USD),
        ((INR, EUR), (INR, EUR), EUR, EUR),
    ],
)
def test_the_billing_currency_applies_or_else_the_first_that_all_meters_have(
    first: Sequence[Currency],
    second: Sequence[Currency],
    billing: Currency | None,
    currency: Currency,
    wanted: str | None,
) -> None:
    one, other = meter(None, wanted=wanted), meter(None, wanted=wanted)
    prices = [price(one, "1", code) for code in first] + [price(other, "1", c) for c in second]

    found = cost_of([one, other], prices, {"tier": "a"}, billing=billing)

    assert found == (currency, 2)


@pytest.mark.parametrize(
    ("first", "second", "billing"),
    [
        (USD_ONLY, INR_ONLY, None),
        (USD_ONLY, USD_ONLY, INR),
        (BOTH, USD_ONLY, INR),
        (BOTH, BOTH, EUR),
        ((EUR,), (EUR,), None),
        (BOTH, (), None),
    ],
)
def test_meters_without_a_price_in_a_currency_that_applies_are_refused(
    first: Sequence[Currency], second: Sequence[Currency], billing: Currency | None
) -> None:
    one, other = meter(None), meter(None)
    prices = [price(one, "1", code) for code in first] + [price(other, "1", c) for c in second]

    with pytest.raises(NoPriceError):
        cost_of([one, other], prices, {}, billing=billing)


@pytest.mark.parametrize("priced", [True, False], ids=["priced", "measured only"])
@pytest.mark.parametrize(
    "metadata", [{}, {"tokens": "many"}, {"tokens": True}, {"tokens": -1}, {"tokens": 10**13}]
)
def test_the_refusal_of_a_summed_property_names_it(metadata: Metadata, *, priced: bool) -> None:
    tokens = meter()

    with pytest.raises(BadQuantityError, match="'tokens'"):
        cost_of([tokens], [price(tokens, "1")] if priced else [], metadata)


@pytest.mark.parametrize("wanted", [None, "a"], ids=["plain", "filtered"])
def test_an_absent_property_adds_nothing_to_its_meter_and_does_not_stop_the_others(
    wanted: str | None,
) -> None:
    meters = [meter(key, wanted=wanted) for key in ("input", "output", "cached")]
    prices = [price(of, amount) for of, amount in zip(meters, ("1", "10", "100"), strict=True)]

    found = cost_of(meters, prices, {"input": 10, "output": 5, "tier": "a"})

    assert found == (USD, 60)


@pytest.mark.parametrize("wanted", [None, "a"], ids=["plain", "filtered"])
@pytest.mark.parametrize("amount", ["0", "1"])
def test_an_event_that_adds_to_no_meter_is_refused_and_one_that_adds_zero_is_not(
    amount: str, wanted: str | None
) -> None:
    tokens, images = meter(wanted=wanted), meter("images", wanted=wanted)
    prices = [price(tokens, amount), price(images, amount)]

    with pytest.raises(BadQuantityError, match=r"none of the properties.*'images', 'tokens'"):
        cost_of([tokens, images], prices, {"token": 7, "tier": "a"})

    assert cost_of([tokens, images], prices, {"tokens": 0, "tier": "a"}) == (USD, 0)


values_of_any_kind = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(-1e13, 1e13),
    st.booleans(),
    st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=8),
    st.decimals(-1, 10**13, places=20).map("{:f}".format),
    st.sampled_from(["1e3", "1e-7", "-0", "007", 0.1 + 0.2, 1e-13, 10**12, 10**12 + 1]),
)


@given(values_of_any_kind)
def test_the_api_accepts_a_summed_property_exactly_if_the_drain_can_price_it(
    value: MetadataValue,
) -> None:
    raw = {
        "event_id": "e",
        "customer_id": "c",
        "event_name": "call",
        "timestamp": CHANGE,
        "metadata": {"tokens": value},
    }
    tokens = meter()
    try:
        (taken,) = check_events([raw], AcceptLimits(), {"call": frozenset({"tokens"})}, CHANGE)
    except InvalidInputError as refused:
        reason = refused.problems[0].reason.removeprefix("is summed by a meter, but ")
        with pytest.raises(BadQuantityError, match=reason):
            cost_of([tokens], [price(tokens, "1")], {"tokens": value})
        return

    found = cost_of([tokens], [price(tokens, "1")], taken.metadata)

    assert abs(found[1] - Decimal(str(value))) <= Decimal("5e-13")


def test_a_cost_does_not_depend_on_the_host_s_decimal_context() -> None:
    tokens = meter()
    prices = [price(tokens, "12345.678901234567", units=1000)]

    with localcontext(Context(prec=3, rounding=ROUND_UP, traps=[])):
        found = cost_of([tokens], prices, {"tokens": "987654321.123456"})

    assert found == (USD, Decimal("12193263114.007000466544821703552"))


def new_price(amount: str, units: int = 1) -> NewPrice:
    return NewPrice(meter_id="mtr_1", currency="USD", price_per_unit=amount, units=units)


@pytest.mark.parametrize("amount", ["0", "99999.999999999999", "0.000000000001", "00001"])
def test_a_price_within_its_limits_is_accepted(amount: str) -> None:
    assert new_price(amount).price_per_unit == amount


@pytest.mark.parametrize(
    "amount",
    ["", "-1", "+1", "1e3", ".5", "5.", "100000", "0.0000000000001", "1\n", "NaN", "\u0663"],
)
def test_a_malformed_price_is_refused(amount: str) -> None:
    with pytest.raises(ValidationError):
        new_price(amount)


@pytest.mark.parametrize("units", [0, -1, 10**9 + 1, True, 1.0])
def test_a_number_of_units_out_of_range_is_refused(units: int) -> None:
    with pytest.raises(ValidationError):
        new_price("1", units)


@pytest.mark.parametrize(("amount", "units"), [("1", 3), ("0.000000000001", 2**10), ("10", 7)])
def test_a_price_whose_unit_has_endless_decimals_is_refused(amount: str, units: int) -> None:
    with pytest.raises(InvalidInputError) as refused:
        _check_exact(new_price(amount, units))

    assert [problem.field for problem in refused.value.problems] == ["units"]


@given(st.decimals(0, 99_999, places=12), st.sampled_from([1, 2, 3, 8, 1000, 10**6, 10**9]))
def test_an_accepted_price_has_an_exact_price_per_unit(amount: Decimal, units: int) -> None:
    try:
        _check_exact(new_price(f"{amount:f}", units))
    except InvalidInputError:
        return

    found = price(meter(), f"{amount:f}", units=units).unit_price

    assert found * units == amount


@given(
    st.lists(st.tuples(st.integers(0, 30), st.none() | st.integers(0, 20)), min_size=1, max_size=6),
    st.integers(-1, 55),
)
def test_the_price_in_force_is_the_last_begun_one_that_has_not_ended(
    spans: list[tuple[int, int | None]], at: int
) -> None:
    """A price that ends when it begins was withdrawn. Of two with one start, the later counts."""
    tokens = meter()
    prices = []
    for number, (start, length) in enumerate(spans):
        since = LONG_AGO + start * MICROSECOND
        until = None if length is None else since + length * MICROSECOND
        made = price(tokens, str(number + 1), since=since)
        prices.append(replace(made, price_id=PriceId(f"prc_{number:03}"), ended_at=until))
    in_force = [
        (start, number + 1)
        for number, (start, length) in enumerate(spans)
        if start <= at and (length is None or at < start + length)
    ]
    moment = LONG_AGO + at * MICROSECOND

    if in_force:
        assert cost_of([tokens], prices, {"tokens": 1}, at=moment) == (USD, max(in_force)[1])
    else:
        assert gap([tokens], prices, {"tokens": 1}, at=moment)[0] == "no_price"
