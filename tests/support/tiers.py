"""Marks the cases of a test that only `make test-all` runs."""

from collections.abc import Iterable
from typing import Any

import pytest

# CPU, also of processes that the test has waited for. A busy machine makes no test fail by it.
CPU_S_MAX = {"unit": 5, "integration": 15}

is_slow = False  # conftest.py sets it


def of_tier(quick: int, slow: int) -> int:
    """Return how many examples this run tries: the slow tier tries more."""
    return slow if is_slow else quick


def mostly_slow(cases: Iterable[str], *quick: str) -> list[Any]:
    """Return the cases as parameters; all but the quick ones are in the slow tier."""
    cases = list(cases)
    assert set(quick) <= set(cases)
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
