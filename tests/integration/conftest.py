from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from metering.buffer.stream import UsageBuffer
from metering.ids import new_ulid
from support.checkout_driver import Till
from support.edge import Api, running_api
from support.notices import undescribed
from support.tenant import Shop, shared_database
from worker.session import Sessions
from worker.settings import Settings, settings_from


@pytest.fixture
def shop(sessions: Sessions, buffer: UsageBuffer) -> Iterator[Shop]:
    """A business with one customer; what it was told is as the API describes it."""
    opened = Shop.open(sessions, buffer)
    yield opened
    assert undescribed(opened) == []


@pytest.fixture
def till(shop: Shop) -> Till:
    """What buys, charges and is told for the shop's business."""
    return Till(shop)


@pytest.fixture(scope="module")
def module_database_url(servers: Any) -> Iterator[str]:
    """One database for the tests of a module, each of which has a business of its own."""
    with shared_database(servers.execute, servers.template, f"shared_{new_ulid().lower()}") as name:
        yield servers.url_of(name)


@pytest.fixture(scope="module")
def module_api_url(module_database_url: str, servers: Any) -> Iterator[str]:
    """One API for the tests of a module."""
    urls = {"DATABASE_URL": module_database_url, "REDIS_URL": servers.accounts.redis_url}
    with running_api(settings_from(urls)) as url:
        yield url


@pytest.fixture
def api(config: Settings, shop: Shop) -> Iterator[Api]:
    """The API of the shop's business."""
    with running_api(config) as url:
        bare = Api(url, shop.sessions, shop.business_id, "")
        yield replace(bare, key=bare.key_for())
