"""The wheels of both distributions: built from a clean copy, installed, and run elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
SITE = Path(f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages")
PRODUCER_PACKAGES_MAX = 15

pytestmark = pytest.mark.slow


def run(*argv: str | Path, environment: Mapping[str, str], cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in argv],
        env=dict(environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copied() -> list[str]:
    """The files in the build context of the image."""
    lines = (ROOT / ".dockerignore").read_text().split()
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


@pytest.fixture(scope="module")
def wheels(module_data_dir: Path, variables: Mapping[str, str]) -> Path:
    """Both wheels, built without an index from the build context of the image."""
    source, folder = module_data_dir / "source", module_data_dir / "dist"
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                source / name,
                ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"),
                symlinks=True,
            )
        else:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(*PIP, "wheel", *options, ".", "./server", environment=variables, cwd=source)
    return folder


@pytest.fixture
def outside(data_dir: Path, variables: Mapping[str, str]) -> Path:
    """A folder outside of the checkout with a new, empty virtual environment."""
    run(sys.executable, "-m", "venv", "--without-pip", ".", environment=variables, cwd=data_dir)
    return data_dir


def brought(site: Path, distribution: str) -> set[str]:
    """Return the top-level names that a distribution added to site-packages."""
    (record,) = site.glob(f"{distribution}-*.dist-info/RECORD")
    tops = {line.split(",")[0].split("/")[0] for line in record.read_text().splitlines()}
    return {top for top in tops if not top.endswith(".dist-info")} - {"..", "__pycache__"}


def install(outside: Path, variables: Mapping[str, str], *arguments: str | Path) -> None:
    python = ("--python", outside / "bin" / "python")
    run(*PIP, *python, "install", *arguments, environment=variables, cwd=outside)


def test_a_producer_gets_one_package_and_an_application_runs_where_it_is_installed(
    wheels: Path, outside: Path, variables: Mapping[str, str]
) -> None:
    site = outside / SITE
    offline = ("--no-index", "--no-deps", "--find-links", wheels)
    install(outside, variables, *offline, "gullak")
    assert brought(site, "gullak") == {"metering"}
    assert not (outside / "bin" / "gullak").exists()

    install(outside, variables, *offline, "gullak-server")
    assert brought(site, "gullak_server") == {"api", "celeryconfig.py", "tasks", "worker"}

    # The packages of the tests stand in for those that an index would give. The editable install
    # among them does not count here: a path is added, and the `.pth` files there are not read.
    (site / "dependencies.pth").write_text(next(p for p in sys.path if p.endswith("site-packages")))
    gullak = outside / "bin" / "gullak"
    assert "customer" in run(gullak, "--help", environment=variables, cwd=outside)
    assert run(gullak, "--version", environment=variables, cwd=outside).startswith("gullak 0.")
    places = "import api, celeryconfig, metering, tasks, worker.app as w; print(metering.__file__)"
    shown = run(outside / "bin" / "python", "-c", places, environment=variables, cwd=outside)
    assert shown.startswith(str(site))
    for wheel in ("gullak", "gullak_server"):
        assert [*site.glob(f"{wheel}-*.dist-info/licenses/LICENSE")], f"{wheel} has no licence"


def is_index_reachable(variables: Mapping[str, str], folder: Path) -> bool:
    """Request one small package, as the installation does."""
    options = ("download", "--no-deps", "--dest", folder, "--retries", "0", "--timeout", "10")
    argv = [str(part) for part in (*PIP, *options, "annotated-types")]
    done = subprocess.run(argv, env=dict(variables), cwd=folder, capture_output=True, check=False)
    return done.returncode == 0


def test_a_producer_installs_few_packages_and_can_record(
    wheels: Path, outside: Path, variables: Mapping[str, str]
) -> None:
    """Installs the pinned packages from an index; nothing else is on the path."""
    if not is_index_reachable(variables, outside):
        pytest.skip("no package index answers")
    runtime = (ROOT / "requirements" / "runtime.txt").read_text()
    pins = re.findall(r"^[\w.-]+==[^\s\\]+(?: ;[^\\\n]*)?", runtime, re.MULTILINE)
    constraints = outside / "constraints.txt"
    constraints.write_text("\n".join(pins))

    install(outside, variables, "--find-links", wheels, "--constraint", constraints, "gullak")

    installed = [*(outside / SITE).glob("*.dist-info")]
    assert 1 < len(installed) < PRODUCER_PACKAGES_MAX, installed
    use = "from metering.accept import Meter, MeterMiddleware; print(Meter.__name__)"
    assert run(outside / "bin" / "python", "-c", use, environment=variables, cwd=outside) == (
        f"Meter{os.linesep}"
    )
