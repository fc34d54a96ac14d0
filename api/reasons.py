"""The reason for a refused field, where pydantic's message does not help.

Amounts are integers of minor units, and prices are texts. Most first mistakes are made in these.
"""

import re
from collections.abc import Sequence
from typing import Final

from pydantic_core import ErrorDetails

from metering.errors import FieldProblem
from metering.field_problems import dotted, one_each, path_of, reason_of
from metering.money import PRICE_DECIMALS_MAX, PRICE_INTEGER_DIGITS_MAX

# The fields of requests that hold money, by their names.
AMOUNTS: Final = frozenset(
    {
        "amount",
        "cost_basis",
        "credit",
        "day_cap",
        "limit",
        "month_cap",
        "price",
        "recover_at",
        "threshold",
    }
)
PRICES: Final = frozenset({"price_per_unit"})
CURRENCIES: Final = frozenset({"currency", "billing_currency"})
_NO_INTEGER: Final = frozenset({"int_type", "int_from_float", "int_parsing", "int_parsing_size"})
_NO_TEXT: Final = frozenset({"string_type", "string_pattern_mismatch"})
_MAJOR: Final = re.compile(r"([0-9]{1,15})[.,]([0-9]{1,2})")


def problems_of(details: Sequence[ErrorDetails], body: object) -> list[FieldProblem]:
    """Return each refused field with its reason, without what a response cannot hold."""
    return one_each(_problem(detail, body) for detail in details)


def _problem(detail: ErrorDetails, body: object) -> FieldProblem:
    """Return the refused field. The first part of `loc` is the place: body, query or path."""
    place, *path = detail["loc"] or ("body",)
    if detail["type"] == "json_invalid":
        return FieldProblem("body", f"is not JSON: {detail['ctx']['error']}, character {path[0]}")
    if not path and isinstance(detail["input"], bytes):
        return FieldProblem("body", "was not sent as JSON: add `Content-Type: application/json`")
    # A parameter is one text.
    path = path_of({**detail, "loc": tuple(path)}, body) if place == "body" else path[:1]
    field = dotted(path) or str(place)
    # Only fields of the body hold money. A parameter may have the same name.
    name = str(path[-1]) if path and place == "body" else ""
    return FieldProblem(field, _reason(name, detail))


def _reason(name: str, detail: ErrorDetails) -> str:
    kind = detail["type"]
    if name in AMOUNTS and kind in _NO_INTEGER:
        return _not_minor(detail["input"])
    if name in PRICES and kind in _NO_TEXT:
        return (
            "is a price in minor units (cents, paise), as text with a decimal point, such as"
            f' "0.03": up to {PRICE_INTEGER_DIGITS_MAX} digits before the point,'
            f" {PRICE_DECIMALS_MAX} after it"
        )
    if name in CURRENCIES and kind in _NO_TEXT:
        return "is the code of a currency in capital letters, such as USD"
    return reason_of(detail)


def _not_minor(given: object) -> str:
    """Explain minor units, with the given amount as the example if it looks like one."""
    found = _MAJOR.fullmatch(str(given))
    major, cents = found.groups() if found else ("5", "50")
    cents = cents.ljust(2, "0")
    return (
        "is in minor units (cents, paise): an integer, and no text;"
        f" {major}.{cents} USD is {int(major + cents)}"
    )
