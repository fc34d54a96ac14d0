"""Arrays as parameters of statements go to Postgres and back."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from metering.copy_format import array
from worker.session import Sessions

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
elements = {
    "text": st.none() | texts,
    "bigint": st.none() | st.integers(-(2**63), 2**63 - 1),
    "numeric": st.none() | st.decimals(allow_nan=False, allow_infinity=False, places=12),
    "bytea": st.none() | st.binary(max_size=40),
}


@pytest.mark.parametrize("kind", elements)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_an_array_comes_back_unchanged(sessions: Sessions, kind: str, data: st.DataObject) -> None:
    values: list[Any] = data.draw(st.lists(elements[kind], max_size=5))

    with sessions.transaction() as conn:
        query = text(f"SELECT CAST(:values AS {kind}[])")
        found = conn.execute(query, {"values": array(values)}).scalar_one()

    assert found == values
