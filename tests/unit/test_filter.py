"""Filters of meters: each operator on each type of value, and the shapes that are accepted."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from metering.rate_card.filter import Condition, Filter, Operator, compile_filter

ORDERINGS: tuple[Operator, ...] = (
    "greater_than",
    "greater_than_or_equals",
    "less_than",
    "less_than_or_equals",
)
OPERATORS: tuple[Operator, ...] = (
    "equals",
    "not_equals",
    *ORDERINGS,
    "contains",
    "does_not_contain",
)
Value = str | int | float | bool


def matches(operator: str, wanted: Value, value: Value) -> bool:
    condition = Condition.model_validate({"key": "k", "operator": operator, "value": wanted})
    return compile_filter(condition)({"k": value})


def clause(key: str = "k", operator: str = "equals", value: object = 1) -> dict[str, Any]:
    return {"key": key, "operator": operator, "value": value}


def joined(conjunction: str, *clauses: dict[str, Any]) -> dict[str, Any]:
    return {"conjunction": conjunction, "clauses": list(clauses)}


EQUALITY = [
    ("gpt", "gpt", True),
    ("gpt", "GPT", False),
    ("", "", True),
    (5, 5, True),
    (5, 5.0, True),
    (5.0, 5, True),
    (0.1, 0.1, True),
    (0.3, 0.1 + 0.2, False),
    (2**53, 2.0**53, True),
    (2**53 + 1, 2.0**53, False),
    (0, -0.0, True),
    (True, True, True),
    (False, False, True),
    (True, False, False),
    (True, 1, False),
    (1, True, False),
    (False, 0, False),
    (0, False, False),
    (1.0, True, False),
    ("5", 5, False),
    (5, "5", False),
    ("true", True, False),
    (True, "true", False),
]


@pytest.mark.parametrize(("wanted", "value", "equal"), EQUALITY)
def test_equals_compares_numbers_by_value_and_other_values_within_their_type(
    wanted: Value, value: Value, *, equal: bool
) -> None:
    assert matches("equals", wanted, value) is equal


@pytest.mark.parametrize(("wanted", "value", "equal"), EQUALITY)
def test_not_equals_is_the_opposite_for_an_existing_property(
    wanted: Value, value: Value, *, equal: bool
) -> None:
    assert matches("not_equals", wanted, value) is not equal


@pytest.mark.parametrize(
    ("wanted", "value", "expected"),
    [
        (5, 4, "<"),
        (5, 5, "="),
        (5, 6, ">"),
        (5, 4.999999999999999, "<"),
        (5, 5.0, "="),
        (0.3, 0.1 + 0.2, ">"),
        (-1, -2, "<"),
        (2**53, 2**53 + 1, ">"),
        (1e308, 1e-308, "<"),
        ("b", "a", "<"),
        ("b", "b", "="),
        ("b", "ba", ">"),
        ("a", "B", "<"),
    ],
)
@pytest.mark.parametrize("operator", ORDERINGS)
def test_numbers_are_ordered_by_value_and_texts_alphabetically(
    operator: str, wanted: Value, value: Value, expected: str
) -> None:
    true_for = {
        "greater_than": ">",
        "greater_than_or_equals": ">=",
        "less_than": "<",
        "less_than_or_equals": "<=",
    }

    assert matches(operator, wanted, value) is (expected in true_for[operator])


@pytest.mark.parametrize(
    ("wanted", "value"),
    [(5, "6"), ("5", 6), (0, True), (True, 1), (True, True), (False, True), ("a", True)],
)
@pytest.mark.parametrize("operator", ORDERINGS)
def test_values_without_an_order_do_not_match(operator: str, wanted: Value, value: Value) -> None:
    assert matches(operator, wanted, value) is False


CONTAINMENT = [
    ("4o", "gpt-4o-mini", True),
    ("4O", "gpt-4o-mini", False),
    ("", "anything", True),
    ("long", "lo", False),
    (23, 12345, True),
    (24, 12345, False),
    ("5", 1.5, True),
    (1.5, "v1.5", True),
    ("ru", True, True),
    (True, "it is true", True),
    (False, True, False),
]


@pytest.mark.parametrize(("wanted", "value", "inside"), CONTAINMENT)
def test_contains_searches_the_text_of_a_value(
    wanted: Value, value: Value, *, inside: bool
) -> None:
    assert matches("contains", wanted, value) is inside


@pytest.mark.parametrize(("wanted", "value", "inside"), CONTAINMENT)
def test_does_not_contain_is_the_opposite_for_an_existing_property(
    wanted: Value, value: Value, *, inside: bool
) -> None:
    assert matches("does_not_contain", wanted, value) is not inside


@pytest.mark.parametrize("wanted", ["a", 1, 1.5, True])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_missing_property_matches_no_operator(operator: str, wanted: Value) -> None:
    condition = Condition.model_validate(clause(operator=operator, value=wanted))

    assert compile_filter(condition)({"other": wanted}) is False


@pytest.mark.parametrize("value", [True, 1, 1.0, "1"])
def test_a_value_keeps_the_type_it_was_written_with(value: Value) -> None:
    read = Condition.model_validate_json(
        Condition.model_validate(clause(value=value)).model_dump_json()
    )

    assert (type(read.value), read.value) == (type(value), value)


def test_conjunctions_can_be_nested() -> None:
    tree = joined(
        "and",
        joined(
            "or",
            joined("and", clause("a"), clause("b")),
            joined("and", clause("c")),
        ),
        joined("or", joined("and", clause("d"))),
    )
    compiled = compile_filter(Filter.model_validate(tree))

    found = {
        keys: compiled(dict.fromkeys(keys, 1)) for keys in ("abd", "cd", "ad", "bd", "abc", "d")
    }

    assert found == {
        "abd": True,
        "cd": True,
        "ad": False,
        "bd": False,
        "abc": False,
        "d": False,
    }


conditions = st.builds(clause, st.sampled_from("abc"), st.just("equals"), st.integers(0, 1))


def _level(below: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    clauses = st.lists(conditions, min_size=1, max_size=2) | st.lists(below, min_size=1, max_size=2)
    return st.builds(
        lambda conjunction, parts: joined(conjunction, *parts),
        st.sampled_from(["and", "or"]),
        clauses,
    )


filters = _level(
    _level(st.lists(conditions, min_size=1, max_size=2).map(lambda c: joined("or", *c)))
)


def _model(node: dict[str, Any], metadata: dict[str, int]) -> bool:
    if "key" in node:
        return node["key"] in metadata and metadata[node["key"]] == node["value"]
    parts = [_model(part, metadata) for part in node["clauses"]]
    return all(parts) if node["conjunction"] == "and" else any(parts)


@given(filters, st.dictionaries(st.sampled_from("abc"), st.integers(0, 1)))
def test_a_nested_filter_agrees_with_a_plain_model(
    tree: dict[str, Any], metadata: dict[str, int]
) -> None:
    compiled = compile_filter(Filter.model_validate(tree))

    assert compiled(dict(metadata)) is _model(tree, metadata)


def test_a_filter_of_three_levels_is_accepted() -> None:
    tree = joined("and", joined("or", joined("and", clause())))

    assert compile_filter(Filter.model_validate(tree))({"k": 1})


@pytest.mark.parametrize(
    "tree",
    [
        joined("and", joined("or", joined("and", joined("or", clause())))),
        joined("and"),
        joined("and", *[clause()] * 11),
        joined("and", joined("or", *[clause()] * 11)),
        joined("xor", clause()),
        joined("and", clause(), joined("or", clause())),
        joined("and", clause(operator="like")),
        joined("and", clause(key="")),
        joined("and", clause(key="k" * 101)),
        joined("and", clause(value="v" * 501)),
        joined("and", clause(value=None)),
        joined("and", clause(value=[1])),
        joined("and", clause(value=float("nan"))),
        joined("and", clause(value=float("inf"))),
        joined("and", {**clause(), "extra": 1}),
        {"conjunction": "and"},
        {"clauses": [clause()]},
    ],
    ids=[
        "four levels",
        "no clause",
        "11 clauses",
        "11 clauses below",
        "unknown conjunction",
        "conditions beside filters",
        "unknown operator",
        "empty key",
        "key too long",
        "text too long",
        "null",
        "list",
        "nan",
        "infinite",
        "unknown field",
        "clauses missing",
        "conjunction missing",
    ],
)
def test_a_malformed_filter_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Filter.model_validate(tree)


@pytest.mark.parametrize(
    "tree",
    [
        joined("and", *[clause()] * 10),
        joined("and", clause(key="k" * 100)),
        joined("and", clause(value="v" * 500)),
    ],
    ids=["10 clauses", "longest key", "longest text"],
)
def test_a_filter_at_its_limits_is_accepted(tree: dict[str, Any]) -> None:
    assert Filter.model_validate(tree).conjunction == "and"
