"""The site of the documentation builds without warnings and loads nothing from the network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Addresses that a browser loads by itself.
LOADS = re.compile(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"|<link[^>]*\shref="([^"]+)"')


def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)

    done = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    written = sorted((ROOT / "docs").rglob("*.md"))
    assert len(pages) == len(written) + 1  # and the page for 404
    loaded = {link for page in pages for found in LOADS.findall(page.read_text()) for link in found}
    assert {link for link in loaded if link.startswith(("http:", "https:", "//"))} == set()
