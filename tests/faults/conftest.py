import pytest

from crowd import Crowd
from metering.buffer.stream import UsageBuffer
from worker.session import Sessions


@pytest.fixture
def crowd(sessions: Sessions, buffer: UsageBuffer) -> Crowd:
    """Customers in both currencies on this test's servers."""
    return Crowd.open(sessions, buffer)
