from collections.abc import Iterator
from typing import Any

import pytest

from metering.buffer.stream import UsageBuffer
from support.checkout_driver import CheckoutDriver
from support.edge import Api, running_api
from support.notices import undescribed
from support.tenant import Shop
from worker.context import open_buffer
from worker.session import Sessions, make_engine
from worker.settings import Settings, settings_from


@pytest.fixture
def shop(sessions: Sessions, buffer: UsageBuffer) -> Iterator[Shop]:
    """A business with one customer. In the end its webhooks must match the API description."""
    opened = Shop.open(sessions, buffer)
    yield opened
    assert undescribed(opened) == []


@pytest.fixture
def driver(shop: Shop) -> CheckoutDriver:
    """Drives checkouts, charges and top-ups of the business."""
    return CheckoutDriver(shop)


@pytest.fixture(scope="module")
def module_config(module_database_url: str, servers: Any) -> Settings:
    """Settings of the module's database."""
    return settings_from(
        {"DATABASE_URL": module_database_url, "REDIS_URL": servers.credentials.redis_url}
    )


@pytest.fixture(scope="module")
def module_shop(module_config: Settings) -> Iterator[Shop]:
    """A business with one customer for the tests of a module together."""
    sessions, buffer = Sessions(make_engine(module_config)), open_buffer(module_config)
    yield Shop.open(sessions, buffer)
    buffer.redis.close()
    sessions.engine.dispose()


@pytest.fixture(scope="module")
def module_api_url(module_config: Settings) -> Iterator[str]:
    """One API for the tests of a module."""
    with running_api(module_config) as url:
        yield url


@pytest.fixture
def api(config: Settings, shop: Shop) -> Iterator[Api]:
    """The API of the shop's business."""
    with running_api(config) as url:
        yield Api.open(url, shop.sessions, shop.business_id)


@pytest.fixture
def module_api(module_api_url: str, shop: Shop) -> Api:
    """The module's API, for the shop's business."""
    return Api.open(module_api_url, shop.sessions, shop.business_id)
