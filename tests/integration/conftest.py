import pytest

from metering.buffer.stream import UsageBuffer
from shop import Shop
from worker.session import Sessions


@pytest.fixture
def shop(sessions: Sessions, buffer: UsageBuffer) -> Shop:
    """A business with one customer."""
    return Shop.open(sessions, buffer)
