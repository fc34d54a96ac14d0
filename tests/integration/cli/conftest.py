"""The command line on the servers of a test."""

import pytest

from support.checkout_driver import CheckoutDriver
from support.command import Gullak
from worker import charging
from worker.settings import Settings


@pytest.fixture
def gullak(
    config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Gullak:
    return Gullak.on(config, monkeypatch, capsys)


@pytest.fixture
def charging_gullak(
    config: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    driver: CheckoutDriver,
) -> Gullak:
    """Commands that charge through the provider of the test, which is in this process."""
    monkeypatch.setattr(charging, "open_gateway", driver.provider)
    return Gullak.on(config, monkeypatch, capsys)
