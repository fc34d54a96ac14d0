"""A key that an object gives twice is found by its path, in one pass, wherever it is."""

import json
from time import process_time

import pytest

from metering.errors import InvalidInputError
from metering.json_keys import check_keys_read, repeated_key

MANY = 100_000


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"a": 1, "b": {"a": 1}}', None),
        ('{"a": 1, "a": 1}', "a"),
        ('{"a": {"b": [0, {"c": 1, "d": 2, "c": 3}]}}', "a.b[1].c"),
        ('[{"a": 1}, {"a": 1, "\\u0061": 2}]', "[1].a"),
        ('{"a": {"b": 1, "b": 2}, "a": 3}', "a"),
        ('{"\\ud800": 1, "\\ud800": 2}', ascii("\ud800")),
        ('{"n": ' + "9" * 10_000 + "}", None),
        ("not JSON", None),
        ("[" * 100_000, None),
    ],
)
def test_a_key_that_is_given_twice_is_found_by_its_path(text: str, path: str | None) -> None:
    assert repeated_key(text) == path
    assert repeated_key(text.encode()) == path


@pytest.mark.parametrize("text", ['{"a": ":::", "b": 1}', '{"a": "\\u003a", "b": 1}', "[[[]]]"])
def test_what_was_read_without_a_loss_is_let_through(text: str) -> None:
    check_keys_read(text.encode(), json.loads(text))


@pytest.mark.parametrize("text", ['{"a": 1, "a" : 2}', '{"b": "\\u003a", "a": 1, "a": 2}'])
def test_a_loss_is_seen_in_what_was_read(text: str) -> None:
    with pytest.raises(InvalidInputError, match="a: is given twice"):
        check_keys_read(text.encode(), json.loads(text))


def test_an_object_with_many_keys_takes_no_longer_for_one_that_comes_twice() -> None:
    keys = ",".join(f'"{number}":1' for number in range(MANY))
    started_s = process_time()

    assert repeated_key(f'{{{keys},"{MANY - 1}":2}}') == str(MANY - 1)
    assert process_time() - started_s < 5  # a second pass for each key takes minutes
