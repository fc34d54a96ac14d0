"""What pydantic refuses, as the fields that the sender knows, with one plain reason for each."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic_core import ErrorDetails

from metering.errors import FieldProblem
from metering.fields import FILLED, HTTP_URL, METADATA_KEY, NO_NUL, PAGE_URL, shown

PLAIN: Final = {
    FILLED: "must not be blank, nor hold a NUL character",
    NO_NUL: "must not hold a NUL character",
    METADATA_KEY: "is no key: 1 to 40 letters, digits, _ and - are allowed",
    HTTP_URL: "is not an http or https address",
    PAGE_URL: "is not an http or https address in visible ASCII characters",
}
_OBJECTS: Final = frozenset({"model_type", "model_attributes_type", "dict_type"})
# Found in the names of pydantic's validators, such as `function-before[_rfc3339(), datetime]`.
_INTERNAL: Final = ("[", "(")

Path = list[int | str]


def path_of(detail: ErrorDetails, given: object) -> Path:
    """Return the path of a fault in the refused `given`, which is None if it is not at hand.

    pydantic puts names of its validators, and of the members of a union, between the keys.
    """
    if given is None:
        return [part for part in detail["loc"] if not _is_internal(part)]
    path: Path = []
    here: Any = given
    for at, part in enumerate(detail["loc"], start=1):
        if _holds(here, part):
            here = here[part]
            path.append(part)
        elif detail["type"] == "missing" and at == len(detail["loc"]):
            path.append(part)
    return path


def dotted(path: Path) -> str:
    """Return a path as text: `filter.clauses[0].key`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{shown(part)}" for part in path)
    return "".join(parts).removeprefix(".")


def _is_internal(part: int | str) -> bool:
    return isinstance(part, str) and any(mark in part for mark in _INTERNAL)


def _holds(given: Any, part: int | str) -> bool:
    if isinstance(given, Mapping):
        return part in given
    return isinstance(given, list) and isinstance(part, int) and part < len(given)


def reason_of(detail: ErrorDetails) -> str:
    """Return the reason without pydantic's words for it, and fit for a response."""
    if detail["type"] == "string_pattern_mismatch":
        return PLAIN.get(detail["ctx"]["pattern"], detail["msg"])
    if detail["type"] in _OBJECTS:
        return "is not an object"
    return detail["msg"].removeprefix("Value error, ").encode(errors="backslashreplace").decode()


def one_each(problems: Iterable[FieldProblem]) -> list[FieldProblem]:
    """Join the reasons of each field: the members of a union give one each."""
    reasons: dict[str, dict[str, None]] = {}
    for problem in problems:
        reasons.setdefault(problem.field, {})[problem.reason] = None
    return [FieldProblem(field, "; or: ".join(found)) for field, found in reasons.items()]
