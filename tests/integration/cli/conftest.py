"""The command line on the servers of a test."""

import pytest

from support.command import Gullak
from worker.settings import Settings


@pytest.fixture
def gullak(
    config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Gullak:
    return Gullak.on(config, monkeypatch, capsys)
