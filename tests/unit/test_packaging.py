"""What a producer installs is small, and the two distributions belong together."""

import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PRODUCER = tomllib.loads((ROOT / "pyproject.toml").read_text())
SERVER = tomllib.loads((ROOT / "server" / "pyproject.toml").read_text())
INSTALLED_MAX = 15

# Imports the public API where nothing but the standard library and some packages can be found.
IMPORT_ALONE = """
import sys
found, root = set(sys.argv[1].split(",")), sys.argv[2]

class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in found and top not in sys.stdlib_module_names and top[0] != "_":
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, root)
import metering.accept
from metering.accept import Meter, MeterMiddleware, MeterWsgiMiddleware, usage
print(*sorted({name.partition(".")[0] for name in sys.modules} & found))
"""


def requirements(texts: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(wanted.name): wanted for wanted in map(Requirement, texts)}


def installed_with(names: list[str]) -> set[str]:
    """Return the distributions that are installed with these, themselves included."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in names]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found and not wanted.extras:
            continue
        found.add(name)
        for needed in map(Requirement, distribution(wanted.name).requires or ()):
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(needed)
    return found


owners_of = cache(packages_distributions)


def modules_of(distributions: Iterable[str]) -> set[str]:
    """Return the names that these distributions bring for `import`."""
    return {
        module
        for module, owners in owners_of().items()
        if {*distributions} & {*map(canonicalize_name, owners)}
    }


def test_a_producer_imports_what_it_installs_and_nothing_else(variables: Mapping[str, str]) -> None:
    """No SQLAlchemy, psycopg, Celery or FastAPI: they cannot be found here."""
    found = modules_of(installed_with(PRODUCER["project"]["dependencies"]))
    argv = [sys.executable, "-c", IMPORT_ALONE, ",".join({*found, "metering"}), str(ROOT)]
    done = subprocess.run(argv, env=dict(variables), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    for wanted in requirements(PRODUCER["project"]["dependencies"]):
        assert modules_of({wanted}) & {*done.stdout.split()}, f"{wanted} is not needed"


def test_a_producer_installs_few_packages() -> None:
    assert len(installed_with(PRODUCER["project"]["dependencies"])) < INSTALLED_MAX


def test_both_distributions_have_one_version_and_pin_each_other() -> None:
    version = PRODUCER["project"]["version"]
    extras: Any = PRODUCER["project"]["optional-dependencies"]

    assert SERVER["project"]["version"] == version
    assert f"gullak=={version}" in SERVER["project"]["dependencies"]
    assert extras["server"] == [f"gullak-server=={version}"]
    assert extras["embedded"] == [f"gullak-server[embedded]=={version}"]


def test_each_requirement_is_in_one_of_the_two_distributions() -> None:
    ours = requirements(PRODUCER["project"]["dependencies"])

    assert not ours.keys() & requirements(SERVER["project"]["dependencies"]).keys()
