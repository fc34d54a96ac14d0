"""JSON texts in which an object gives a key twice: to take one of both values would be a guess."""

import json
from collections.abc import Iterable
from typing import Any

import orjson

from metering.errors import FieldProblem, InvalidInputError
from metering.fields import shown


class _Repeating:
    """Stands for an object that gives a key twice."""

    def __init__(self, key: str) -> None:
        self.key = key


def check_keys(text: bytes | str, where: str = "") -> None:
    """Refuse a JSON text in which an object gives a key twice; `where`: the field that holds it.

    Raises: InvalidInputError. A text that is not JSON is not refused here.
    """
    if (key := repeated_key(text)) is not None:
        field = f"{where}.{key}" if where else key
        raise InvalidInputError(FieldProblem(field, "is given twice"))


def check_keys_read(text: bytes, read: object) -> None:
    """Do the same as `check_keys` in a quarter of the time; `read` is what the text holds."""
    if not _has_as_many_colons(text, read):
        check_keys(text)


def _has_as_many_colons(text: bytes, read: object) -> bool:
    """Tell whether no key was read over: one colon follows each, and the others are in texts."""
    if b"\\u003" in text:  # perhaps a colon
        return False
    try:
        return orjson.dumps(read).count(b":") == text.count(b":")
    except orjson.JSONEncodeError:  # nested too deeply
        return False


def repeated_key(text: bytes | str) -> str | None:
    """Return the path of a key that an object gives twice. Returns None if there is none."""
    found: list[_Repeating] = []

    def kept(pairs: list[tuple[str, Any]]) -> object:
        read = dict(pairs)
        if len(read) == len(pairs):
            return read
        found.append(_Repeating(_first_twice(pairs)))
        return found[-1]

    try:
        # Numbers are not looked at: a very long one would be an error.
        read = json.loads(text, object_pairs_hook=kept, parse_int=str, parse_float=str)
        return _path_in(read) if found else None
    except (ValueError, RecursionError):  # no request is nested so deeply
        return None


def _first_twice(pairs: list[tuple[str, Any]]) -> str:
    """Return the first key that comes again. One pass: a hostile object may have a million keys."""
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    raise AssertionError("the caller has found one")


def _path_in(read: object) -> str | None:
    """Return the path of the first key that is given twice."""
    if isinstance(read, _Repeating):
        return shown(read.key)
    inside: Iterable[tuple[str, object]] = ()
    if isinstance(read, dict):
        inside = ((shown(name), value) for name, value in read.items())
    elif isinstance(read, list):
        inside = ((f"[{at}]", value) for at, value in enumerate(read))
    for name, value in inside:
        if (path := _path_in(value)) is not None:
            return f"{name}{path}" if path.startswith("[") else f"{name}.{path}"
    return None
