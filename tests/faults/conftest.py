import pytest

from metering.buffer.stream import UsageBuffer
from support.traffic import Workload
from worker.session import Sessions


@pytest.fixture
def workload(sessions: Sessions, buffer: UsageBuffer) -> Workload:
    """Customers in both currencies on this test's servers."""
    return Workload.open(sessions, buffer)
