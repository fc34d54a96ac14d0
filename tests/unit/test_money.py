"""Quantities and minor units: accepted and refused values, and exact sums."""

from collections.abc import Iterator
from decimal import ROUND_UP, Context, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.money import (
    EXACT,
    PRICE_DECIMALS_MAX,
    PRICE_INTEGER_DIGITS_MAX,
    QUANTITY_DECIMALS_MAX,
    QUANTITY_MAX,
    plain,
    quantity_of,
    quantity_problem,
    split_minor,
)

QUANTITY_GRAIN = Decimal(1).scaleb(-QUANTITY_DECIMALS_MAX)
PRICE_MAX = 10**PRICE_INTEGER_DIGITS_MAX - Decimal(1).scaleb(-PRICE_DECIMALS_MAX)
HOST_CONTEXT = Context(prec=3, rounding=ROUND_UP, Emax=3, Emin=-3, traps=[])

quantities = st.decimals(0, QUANTITY_MAX, places=QUANTITY_DECIMALS_MAX)
exact_costs = st.decimals(0, 10**17, places=30)


@pytest.fixture
def odd_host() -> Iterator[None]:
    """A host program that computes with three digits and rounds up."""
    with localcontext(HOST_CONTEXT):
        yield


@pytest.mark.parametrize(
    ("value", "quantity"),
    [
        (0, "0"),
        (10**12, "1000000000000"),
        (0.1, "0.1"),
        (1e-12, "0.000000000001"),
        (1e12, "1000000000000"),
        (2.675, "2.675"),
        ("0", "0"),
        ("1000000000000", "1000000000000"),
        ("1000000000000.000000000000", "1000000000000"),
        ("0.000000000001", "0.000000000001"),
        ("999999999999.999999999999", "999999999999.999999999999"),
        ("00000000000001", "1"),
        ("1e3", "1000"),
        ("2.5E-7", "0.00000025"),
        ("-0", "0"),
    ],
)
def test_a_quantity_within_its_limits_is_accepted_unchanged(
    value: float | str, quantity: str
) -> None:
    assert quantity_of(value) == Decimal(quantity)


@pytest.mark.parametrize(
    "value",
    [
        10**12 + 1,
        1000000000000.0002,
        "1000000000000.000000000001",
        "10000000000000",
        "1000000000000.0000000000001",
        "1e13",
        1e308,
        -1,
        -1e-12,
        "-1",
    ],
)
def test_one_step_beyond_a_limit_is_refused(value: float | str) -> None:
    assert quantity_of(value) is None


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        float("-inf"),
        True,
        False,
        None,
        "",
        " 1",
        "1 ",
        "1\n",
        "+1",
        "1e",
        "1e1000",
        ".5",
        "5.",
        "1_000",
        "1,000",
        "0x10",
        "NaN",
        "Infinity",
        "\u0663",
        b"1",
        Decimal(1),
        [1],
        {"tokens": 1},
    ],
)
def test_values_other_than_plain_numbers_are_refused(value: object) -> None:
    assert quantity_of(value) is None


@pytest.mark.parametrize(
    ("value", "quantity"),
    [
        (0.00022500000000000002, "0.000225"),
        (0.1 + 0.2, "0.3"),
        (1e-13, "0"),
        (5e-324, "0"),
        (5e-13, "0"),
        (1.5e-12, "0.000000000002"),
        (2.5e-12, "0.000000000002"),
        (2.5000000000000003e-12, "0.000000000003"),
        ("0.0000000000001", "0"),
        ("3.0000000000005", "3"),
        ("3.0000000000015", "3.000000000002"),
        ("0." + "1" * 498, "0.111111111111"),
    ],
)
def test_decimals_after_the_twelfth_are_rounded_half_to_even(
    value: float | str, quantity: str
) -> None:
    assert quantity_of(value) == Decimal(quantity)


@given(st.floats(0, 1e12))
def test_a_float_is_read_in_its_shortest_decimal_form_to_twelve_decimals(value: float) -> None:
    quantity = quantity_of(value)

    assert quantity is not None
    assert abs(quantity - Decimal(repr(value))) <= QUANTITY_GRAIN / 2
    assert -int(Decimal(repr(value)).as_tuple().exponent) > QUANTITY_DECIMALS_MAX or (
        float(quantity) == value
    )


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (True, "is not a number"),
        ("many", "is not a number"),
        ("", "is not a number"),
        (-1, "is negative"),
        ("-0.5", "is negative"),
        (-1e-300, "is negative"),
        (10**12 + 1, "is above 1000000000000"),
        ("99999999999999999999", "is above 1000000000000"),
        (1e15, "is above 1000000000000"),
    ],
)
def test_a_refused_quantity_has_the_right_reason(value: object, problem: str) -> None:
    assert (quantity_of(value), quantity_problem(value)) == (None, problem)


@given(quantities)
def test_every_text_of_a_quantity_is_read_without_loss(quantity: Decimal) -> None:
    assert quantity_of(plain(quantity)) == quantity


@given(exact_costs)
def test_a_split_loses_nothing_and_leaves_less_than_one_unit(exact: Decimal) -> None:
    whole, remainder = split_minor(exact)

    assert 0 <= remainder < 1
    assert EXACT.add(Decimal(whole), remainder) == exact


@pytest.mark.parametrize(
    ("exact", "whole", "remainder"),
    [("0", 0, "0"), ("0.999999999999", 0, "0.999999999999"), ("1", 1, "0"), ("2.25", 2, "0.25")],
)
def test_a_split_rounds_down(exact: str, whole: int, remainder: str) -> None:
    assert split_minor(Decimal(exact)) == (whole, Decimal(remainder))


def test_a_remainder_of_zero_has_no_sign() -> None:
    _whole, remainder = split_minor(Decimal("3.000"))

    assert not remainder.is_signed()


@pytest.mark.usefixtures("odd_host")
@pytest.mark.parametrize("value", [123456789, 12345.678901, "123456789.123456789"])
def test_a_quantity_does_not_depend_on_the_host_s_context(value: float | str) -> None:
    assert str(quantity_of(value)) == str(value)


@pytest.mark.usefixtures("odd_host")
def test_a_split_does_not_depend_on_the_host_s_context() -> None:
    whole, remainder = split_minor(Decimal("12345678.123456789"))

    assert (whole, str(remainder)) == (12345678, "0.123456789")


@pytest.mark.usefixtures("odd_host")
def test_writing_a_decimal_does_not_depend_on_the_host_s_context() -> None:
    assert plain(Decimal("1234567.8901200")) == "1234567.89012"


def test_the_largest_product_summed_a_million_times_is_exact() -> None:
    quantity, price = QUANTITY_MAX - QUANTITY_GRAIN, PRICE_MAX / 10**9
    cost = EXACT.multiply(quantity, price)

    total = EXACT.multiply(cost, Decimal(10**6))

    assert EXACT.subtract(total, cost) == EXACT.multiply(cost, Decimal(10**6 - 1))


@pytest.mark.parametrize(
    ("value", "text"),
    [("0.0000125", "0.0000125"), ("3.000", "3"), ("1E+2", "100"), ("0E-12", "0"), ("10", "10")],
)
def test_a_decimal_is_written_without_an_exponent(value: str, text: str) -> None:
    assert plain(Decimal(value)) == text
