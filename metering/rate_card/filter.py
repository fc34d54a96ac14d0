"""Filters of meters: checked at creation, compiled once, called for every event.

An event without the filtered property never matches, not even by `not_equals`.
"""

import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Final, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
)

from metering.buffer.chunk import Metadata, MetadataValue
from metering.fields import TEXT_CHARS_MAX, flat

Operator = Literal[
    "equals",
    "not_equals",
    "greater_than",
    "greater_than_or_equals",
    "less_than",
    "less_than_or_equals",
    "contains",
    "does_not_contain",
]
Matches = Callable[[Metadata], bool]
FilterValue = Annotated[
    bool | int | float | str,
    PlainValidator(
        flat,
        json_schema_input_type=StrictBool
        | StrictInt
        | StrictFloat
        | Annotated[StrictStr, Field(max_length=TEXT_CHARS_MAX)],
    ),
]

_ORDERINGS: Final[dict[str, Callable[[Decimal, Decimal], bool]]] = {
    "greater_than": operator.gt,
    "greater_than_or_equals": operator.ge,
    "less_than": operator.lt,
    "less_than_or_equals": operator.le,
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Condition(_Model):
    """One comparison of a metadata property with a value."""

    key: Annotated[StrictStr, Field(min_length=1, max_length=100)]
    operator: Operator
    value: FilterValue


def _kind(clauses: object) -> Literal["(conditions)", "(filters)"]:
    """Tell which of both a list begins with, so that its faults are those of one kind."""
    first = clauses[0] if isinstance(clauses, list) and clauses else None
    if isinstance(first, dict):
        return "(filters)" if {"conjunction", "clauses"} & first.keys() else "(conditions)"
    return "(filters)" if hasattr(first, "conjunction") else "(conditions)"


Clause = TypeVar("Clause")
_Some = Annotated[list[Clause], Field(min_length=1, max_length=10)]
_Conditions = Annotated[_Some[Condition], Tag("(conditions)")]


class InnerFilter(_Model):
    """The third and last level: only conditions."""

    conjunction: Literal["and", "or"]
    clauses: _Some[Condition]


class MiddleFilter(_Model):
    """The second level."""

    conjunction: Literal["and", "or"]
    clauses: Annotated[
        _Conditions | Annotated[_Some[InnerFilter], Tag("(filters)")], Discriminator(_kind)
    ]


class Filter(_Model):
    """A filter: 1 to 10 conditions or nested filters, at most three levels."""

    conjunction: Literal["and", "or"]
    clauses: Annotated[
        _Conditions | Annotated[_Some[MiddleFilter], Tag("(filters)")], Discriminator(_kind)
    ]


def compile_filter(node: Filter | MiddleFilter | InnerFilter | Condition) -> Matches:
    """Return a function of an event's metadata."""
    if isinstance(node, Condition):
        return _compile_condition(node)
    parts = [compile_filter(clause) for clause in node.clauses]
    if len(parts) == 1:
        return parts[0]
    joined = all if node.conjunction == "and" else any
    return lambda metadata: joined(part(metadata) for part in parts)


def _compile_condition(condition: Condition) -> Matches:
    key, compare = condition.key, _comparison(condition.operator, condition.value)

    def matches(metadata: Metadata) -> bool:
        value = metadata.get(key)
        return value is not None and compare(value)

    return matches


def _comparison(name: Operator, wanted: FilterValue) -> Callable[[MetadataValue], bool]:
    if name in _ORDERINGS:
        return _ordering(_ORDERINGS[name], wanted)
    if name in ("equals", "not_equals"):
        equal = _equality(wanted)
        return equal if name == "equals" else lambda value: not equal(value)
    text = _text(wanted)
    if name == "contains":
        return lambda value: text in _text(value)
    return lambda value: text not in _text(value)


def _equality(wanted: FilterValue) -> Callable[[MetadataValue], bool]:
    """Compare numbers by value (5 and 5.0), other values only within a type: `True` is not 1."""
    number = _number(wanted)
    if number is not None:
        return lambda value: _number(value) == number
    return lambda value: type(value) is type(wanted) and value == wanted


def _ordering(
    compare: Callable[[Decimal, Decimal], bool], wanted: FilterValue
) -> Callable[[MetadataValue], bool]:
    """Order numbers by value and texts alphabetically. Other values do not match."""
    limit = _number(wanted)
    if limit is None:
        if type(wanted) is not str:
            return lambda _value: False
        text_compare: Callable[[str, str], bool] = compare  # type: ignore[assignment]
        return lambda value: type(value) is str and text_compare(value, wanted)

    def matches(value: MetadataValue) -> bool:
        number = _number(value)
        return number is not None and compare(number, limit)

    return matches


def _number(value: MetadataValue) -> Decimal | None:
    if type(value) is int:
        return Decimal(value)
    return Decimal(repr(value)) if type(value) is float else None


def _text(value: MetadataValue) -> str:
    if type(value) is bool:
        return "true" if value else "false"
    return str(value)
