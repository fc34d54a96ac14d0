import pytest

from metering.buffer.stream import UsageBuffer
from support.traffic import Crowd
from worker.session import Sessions


@pytest.fixture
def crowd(sessions: Sessions, buffer: UsageBuffer) -> Crowd:
    """Customers in both currencies on this test's servers."""
    return Crowd.open(sessions, buffer)
