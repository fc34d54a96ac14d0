"""The table of commands: its help, what it imports, and where the shared options may stand."""

import subprocess
import sys
from typing import Any

import pytest

from support.command import commands
from worker.cli.commands import COMMANDS
from worker.cli.main import main

LOADED = dict(commands())
HEAVY = {"alembic", "celery", "httpx", "psycopg", "redis", "sqlalchemy", "stripe"}


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str]:
    """Run a command; return its exit code and its output."""
    monkeypatch.setattr(sys, "argv", ["gullak", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out + err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_has_the_help_of_each_command(name: str) -> None:
    command: Any = LOADED[name,]

    if hasattr(command, "commands"):
        assert command.help
    else:
        assert command.help.split("\n\n")[0].replace("\n", " ") == COMMANDS[name][1]


@pytest.mark.parametrize("words", [words for words in LOADED if words], ids=" ".join)
def test_every_command_takes_json(words: tuple[str, ...]) -> None:
    command = LOADED[words]
    is_group_alone = hasattr(command, "commands") and not command.invoke_without_command
    options = {option for parameter in command.params for option in parameter.opts}

    # These print a log for as long as they run.
    assert is_group_alone or "--json" in options or words in {("up",), ("demo",), ("migrate",)}


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["bussiness"]], ids=" ".join)
def test_help_imports_no_command(words: list[str]) -> None:
    code = (
        f"import sys; from worker.cli.main import app; sys.argv[1:] = {words!r}\n"
        "try: app()\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )

    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    loaded = set(result.stderr.decode().split())
    assert "worker.cli.commands" in loaded
    assert not HEAVY & loaded


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bussiness"], "No such command 'bussiness'. Did you mean 'business'?"),
        (["business", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["business", "list", "--jsn"], "No such option: --jsn"),
        (["migrate", "--json"], "No such option: --json"),
        (["--json", "migrate"], "No such option: --json"),
        (["--business=bus_1", "status"], "No such option: --business"),
        (["history", "cus_1"], "Missing option '--currency'"),
        (["--data-dir=x", "keys", "create", "--name"], "Option '--name' requires an argument"),
    ],
    ids=str,
)
def test_a_misspelt_command_or_option_exits_2_and_is_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    code, printed = run(capsys, monkeypatch, *words)

    assert code == 2
    assert message in printed


@pytest.mark.parametrize(
    "words",
    [["--data-dir", "nowhere", "balance", "cus_1"], ["balance", "cus_1", "--data-dir=nowhere"]],
    ids=["before", "after"],
)
def test_shared_options_may_stand_before_or_after_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    code, printed = run(capsys, monkeypatch, *words)

    assert code == 1
    assert printed.startswith("gullak: no stack was ever started in nowhere")


def test_a_shared_option_after_the_command_goes_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--data-dir=one", "balance", "cus_1", "--data-dir", "two")

    assert "no stack was ever started in two" in run(capsys, monkeypatch, *words)[1]
