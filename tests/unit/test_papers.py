"""README and docs name only links, settings, commands, alarms and reasons that exist."""

import re
from pathlib import Path
from typing import cast

import pytest
import typer
import yaml

import metering.errors
from metering.errors import RefusedEventError
from support import reference
from worker.cli.main import app
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAPERS = (*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")))
HANDWRITTEN = [page for page in PAPERS if page.parent != reference.FOLDER]
README_LINES_MAX = 120
COMMANDS = cast("typer.core.TyperGroup", typer.main.get_command(app))
# How a path on a page begins.
FOLDERS = "metering|tasks|worker|api|server|tests|docs|examples|requirements"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def codes(page: Path) -> list[str]:
    """The inline code of a page, and the lines of its blocks."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:sh|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    )
    return [*inline, *(line for block in blocks for line in block.splitlines())]


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as the site and other viewers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", reference.PAGES)
def test_the_generated_pages_are_up_to_date(page: str) -> None:
    stored = (reference.FOLDER / page).read_text()

    assert stored == reference.PAGES[page](), "run `make docs`"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES_MAX


@pytest.mark.parametrize("page", HANDWRITTEN, ids=name_of)
def test_every_link_leads_to_a_page_and_its_heading(page: Path) -> None:
    links = re.findall(r"\]\(((?!https?://)[^)#]*)(?:#([^)]+))?\)", page.read_text())
    missing = []
    for path, anchor in links:
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{path}#{anchor}")

    assert missing == []


@pytest.mark.parametrize("page", HANDWRITTEN, ids=name_of)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"\bGULLAK_[A-Z_]+[A-Z]", page.read_text()))
    settings = {f"GULLAK_{name.upper()}" for name in Settings.model_fields}

    # `gullak env` sets these for a shell.
    assert named - settings - {"GULLAK_URL", "GULLAK_KEY", "GULLAK_BUSINESS"} == set()


@pytest.mark.parametrize("page", HANDWRITTEN, ids=name_of)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    wrong = [
        command
        for code in codes(page)
        for command in re.findall(r"(?:^|[ (/|])gullak ([a-z][\w-]*(?: [a-z][\w|-]*)?)", code)
        if not is_command(command)
    ]

    assert wrong == []


def is_command(words: str) -> bool:
    """Tell whether `gullak` takes these words; `create|list` are two commands."""
    first, _, second = words.partition(" ")
    command = COMMANDS.commands.get(first)
    # A command is imported when it is run.
    subcommands = getattr(getattr(command, "loaded", command), "commands", None)
    if command is None or subcommands is None or not second:
        return command is not None
    return all(word in subcommands for word in second.split("|"))


def test_words_that_are_not_a_command_are_found() -> None:
    assert is_command("keys create|list")
    assert not is_command("keys create|nothing")
    assert not is_command("nothing")


def test_the_runbook_has_a_section_for_each_alarm() -> None:
    groups = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]
    alarms = [rule["alert"] for group in groups for rule in group["rules"]]
    sections = re.findall(r"^## (\w+)$", (DOCS / "runbook.md").read_text(), re.MULTILINE)

    assert sections == alarms


def test_the_runbook_says_what_to_do_for_each_reason_of_a_refusal() -> None:
    runbook = (DOCS / "runbook.md").read_text()
    reasons = {
        error.__dict__["reason"]
        for error in vars(metering.errors).values()
        if isinstance(error, type)
        and issubclass(error, RefusedEventError)
        and "reason" in error.__dict__
    } - {RefusedEventError.reason}

    assert {reason for reason in reasons if f"`{reason}`" not in runbook} == set()


def test_the_tables_of_the_database_that_the_page_on_personal_data_names_exist() -> None:
    migrations = "".join(
        path.read_text() for path in (ROOT / "metering" / "migrations" / "versions").glob("*.py")
    )
    section = (
        (DOCS / "operating.md").read_text().partition("## Personal data")[2].partition("\n## ")[0]
    )
    tables = re.findall(r"^\| `(\w+)", section, re.MULTILINE)

    assert tables
    assert [table for table in tables if not re.search(rf"\b{table}\b", migrations)] == []


@pytest.mark.parametrize("page", HANDWRITTEN, ids=name_of)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = {
        path
        for code in codes(page)
        for path in re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*", code)
    }

    assert {path for path in named if not (ROOT / path).exists()} == set()
