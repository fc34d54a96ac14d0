"""`gullak …` in this process, as a terminal would run it."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import typer

from worker.cli.main import app, main
from worker.settings import Settings


@dataclass(frozen=True)
class Result:
    """The exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Gullak:
    """Runs commands on the servers of a test."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    @classmethod
    def on(
        cls, config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> "Gullak":
        monkeypatch.setenv("DATABASE_URL", config.database_url.get_secret_value())
        monkeypatch.setenv("REDIS_URL", config.redis_url.get_secret_value())
        return cls(monkeypatch, capsys)

    def __call__(self, *arguments: str) -> Result:
        self.monkeypatch.setattr(sys, "argv", ["gullak", *arguments])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self.capsys.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    def made(self, *arguments: str) -> str:
        """Run a command that prints an id; return it."""
        result = self(*arguments)
        assert result.code == 0, result.err
        return result.out.split()[0]


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group by its words. Typer has no public type for them."""

    def walk(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
        loaded = getattr(command, "loaded", command)
        yield path, loaded
        for name, child in getattr(loaded, "commands", {}).items():
            yield from walk(child, *path, name)

    return walk(typer.main.get_command(app))
