from collections.abc import Iterator
from dataclasses import replace

import pytest

from edge import Api, running_api
from metering.buffer.stream import UsageBuffer
from shop import Shop
from worker.session import Sessions
from worker.settings import Settings


@pytest.fixture
def shop(sessions: Sessions, buffer: UsageBuffer) -> Shop:
    """A business with one customer."""
    return Shop.open(sessions, buffer)


@pytest.fixture
def api(config: Settings, shop: Shop) -> Iterator[Api]:
    """The API of the shop's business."""
    with running_api(config) as url:
        bare = Api(url, shop.sessions, shop.business_id, "")
        yield replace(bare, key=bare.key_for())
