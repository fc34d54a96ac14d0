"""Arrays as parameters of statements: Postgres reads the values that were given."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from metering.copy_format import Element, array


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "{}"),
        (["a", None, "b c"], '{"a",NULL,"b c"}'),
        (['a"b', "a\\b", "{a,b}", "NULL", ""], r'{"a\"b","a\\b","{a,b}","NULL",""}'),
        ([1, -2, None], "{1,-2,NULL}"),
        ([Decimal("0.10"), Decimal("1E-7")], "{0.10,0.0000001}"),
        ([b"\x00\xff"], r'{"\\x00ff"}'),
        (
            [datetime(2026, 1, 31, 9, 30, tzinfo=UTC), None],
            '{"2026-01-31T09:30:00+00:00",NULL}',
        ),
    ],
)
def test_an_array_is_written_as_postgres_reads_it(values: list[Element], text: str) -> None:
    assert array(values) == text
