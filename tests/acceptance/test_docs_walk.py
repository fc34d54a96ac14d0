"""README and docs as a reader types them: every block in order, on a running stack.

The blocks of a page are one shell. A Python block that begins with `# name.py` is saved under that
name, as the page says; one that begins with `# examples/name.py` is that file, which the page runs.
Ports that a page names are replaced by free ones, and nothing else is.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.tiers import mostly_slow
from worker.local.port import free_port
from worker.local.up import Stack

ROOT = Path(__file__).parents[2]
# Much longer than any page takes: it ends a shell that waits for ever.
HANGS_AFTER_S = 300

# Blocks that are not run here, and why.
NOT_RUN = {
    "make demo": "tests/acceptance/test_demo.py runs what it runs",
    "make up": "the stack of this test stands for it",
    "pip install /path/to/gullak": "needs a package index",
}
# The output that a page must have shown in the end.
SHOWN = {
    "README.md": ('"balance":400,', "usage debit"),
    "docs/command-line.md": ("325 (3.25 USD)", "ledger: no fault"),
    "docs/integrating.md": (
        "Hello, cus_",
        '{"detail":"no credit left"}',
        '"balance":497,',
        "balance=4800",
        "credit.balance_low",
    ),
    "docs/selling-credit.md": (
        "1100 (11.00 USD)",
        "550 (5.50 USD)",
        "/pay/cs_test_",
        "completed",
        "is refunded by",
    ),
    "docs/operating.md": ("ledger: no fault", "the balance is 500 (5.00 EUR)"),
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Blocks that a reader only reads.
SEEN = ("text", "json")
FILE = re.compile(r"# ((?:examples/)?\w+\.py)\n")
PORT = re.compile(r"(?<=127\.0\.0\.1[:])9\d{3}|(?<=\"127\.0\.0\.1\", )9\d{3}|(?<=--port )9\d{3}")


@pytest.fixture(scope="module")
def desk(module_data_dir: Path, variables: Mapping[str, str]) -> Iterator[Path]:
    """A folder with a running `make up`."""
    (module_data_dir / ".venv").symlink_to(sys.prefix)
    (module_data_dir / "examples").symlink_to(ROOT / "examples")
    reach = {"GULLAK_WEBHOOK_ALLOW_LOOPBACK": "true"}  # as `gullak up` sets it
    with Stack(module_data_dir / ".gullak", variables=variables, overrides=reach):
        yield module_data_dir


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and text of each block of a page that is run."""
    ports: dict[str, str] = {}
    text = PORT.sub(
        lambda found: ports.setdefault(found[0], str(free_port())), (ROOT / page).read_text()
    )
    found = [(kind, body) for kind, body in BLOCK.findall(text)]
    return [(kind, body) for kind, body in found if kind not in SEEN and not is_left_out(body)]


def is_left_out(block: str) -> bool:
    return any(block.startswith(beginning) for beginning in NOT_RUN)


def script(page: str, folder: Path) -> str:
    """The blocks one after the other, as the reader types them; files are saved in `folder`."""
    typed = ["set -eu -o pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for kind, body in blocks(page):
        if kind == "python":
            named = FILE.match(body)
            assert named, f"{page}: a Python block without a file name:\n{body}"
            if not named[1].startswith("examples/"):
                (folder / named[1]).write_text(body)
        else:
            assert kind == "sh", f"{page}: a block of {kind!r}"
            typed.append(body)
    return "\n".join(typed)


def test_every_page_with_blocks_is_run_here_or_says_where() -> None:
    with_blocks = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
        if re.search(r"^```(sh|python)$", path.read_text(), re.MULTILINE)
    }

    # tests/integration/test_restore.py runs the page on backups.
    assert with_blocks == {*SHOWN, "docs/backup-and-restore.md"}


def test_every_left_out_block_is_still_on_a_page() -> None:
    texts = [body for page in SHOWN for _, body in BLOCK.findall((ROOT / page).read_text())]

    for beginning in NOT_RUN:
        assert any(text.startswith(beginning) for text in texts), beginning


@pytest.mark.parametrize(
    "example", sorted((ROOT / "examples").glob("*.*")), ids=lambda path: path.name
)
def test_a_page_runs_every_example_and_shows_python_as_it_is(example: Path) -> None:
    text = (ROOT / "docs" / "integrating.md").read_text()
    typed = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))

    assert re.search(rf"\bexamples\b.*\b{example.stem}\b", typed)
    if example.suffix == ".py":
        assert f"```python\n# examples/{example.name}\n{example.read_text()}```" in text


@pytest.mark.parametrize("page", mostly_slow(SHOWN, "README.md", "docs/integrating.md"))
def test_the_blocks_of_a_page_run(desk: Path, variables: Mapping[str, str], page: str) -> None:
    typed = script(page, desk)
    process = subprocess.Popen(
        ["bash", "-c", typed],
        cwd=desk,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        shown, _ = process.communicate(timeout=HANGS_AFTER_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        shown, _ = process.communicate()
        pytest.fail(f"{page} waits for ever:\n{shown}")

    assert process.returncode == 0, shown
    received = desk / "received.txt"
    shown += received.read_text() if received.exists() else ""
    assert [text for text in SHOWN[page] if text not in shown] == [], shown
