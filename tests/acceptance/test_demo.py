"""`gullak demo` as a person runs it: a real process, judged by its exit code and its JSON."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
TRACE = Path(os.environ.get("GULLAK_TRACE", ROOT.parent / "shared/data/azure_llm_code_2023.csv"))
# A machine that is busy with other tests is slow; the demo's own limits are what is tested.
WITHIN_S = 170
STOPPED_WITHIN_S = 30
DEMO = (sys.executable, "-c", "from worker.cli.main import main; main()", "demo")


def run_demo(folder: Path, variables: Mapping[str, str], *options: str) -> dict[str, Any]:
    """Run the demo; return its JSON. It must exit 0 with every line true."""
    account = folder / "account.json"
    done = subprocess.run(
        [*DEMO, *options, "--json", str(account)],
        cwd=ROOT,
        env={**variables, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(account.read_text())

    assert found["ok"] is True
    assert [each for each in found["lines"] if each["ok"] is not True] == []
    return {**found, "printed": done.stdout}


def test_the_demo_reconciles_after_the_worker_was_killed(
    data_dir: Path, variables: dict[str, str]
) -> None:
    found = run_demo(data_dir, variables, "--events", "3000")

    assert found["events"] == 3000
    ends = [line(found, name) for name in ("posted", "duplicate", "refused")]
    assert line(found, "in") == sum(ends)
    assert min(ends) > 0
    assert 0.4 < found["over_http"] / found["events"] < 0.6
    assert line(found, "alerts due = alerts received") > 0
    assert [(kill["role"], kill["recovered"]) for kill in found["kills"]] == [("worker", True)]
    assert 0 < found["kills"][0]["at_event"] < 3000
    assert_bought(found)
    shown = {shape(printed) for printed in found["printed"].splitlines()}
    assert [printed for printed in lines_in_readme() if shape(printed) not in shown] == []


def lines_in_readme() -> list[str]:
    """The part of the demo's output that README shows."""
    readme = (ROOT / "README.md").read_text()
    return readme.partition("what it prints:\n\n```text\n")[2].partition("```")[0].splitlines()


def shape(printed: str) -> str:
    """A printed line with a sign for each number, and single spaces."""
    return " ".join(re.sub(r"\d[\d,.]*", "#", printed).split())


@pytest.mark.slow
def test_the_demo_survives_the_kill_of_everything(
    data_dir: Path, variables: dict[str, str]
) -> None:
    found = run_demo(data_dir, variables, "--events", "3000", "--kill", "all")

    assert [kill["role"] for kill in found["kills"]] == ["worker", "beat", "redis", "postgres"]
    assert all(kill["recovered"] for kill in found["kills"])
    assert all(0 < kill["at_event"] < 3000 for kill in found["kills"])
    assert_bought(found)


def assert_bought(found: dict[str, Any]) -> None:
    """Seven customers and one rule bought credit, an eighth was declined: each once."""
    counts = {
        "payments that the gateway made": 8,
        "  settled, each once": 8,
        "  of them automatic top-ups": 1,
        "payments that it declined": 1,
        "payments that its webhooks told of": 9,
    }
    assert {name: line(found, name) for name in counts} == counts
    for currency in ("USD", "INR"):
        charged = line(found, f"{currency} sold = charged by the gateway")
        assert line(found, f"{currency} charged = credited") == charged > 0


def line(found: dict[str, Any], name: str) -> Any:
    """The figure that was found for a line of the account."""
    [value] = [each["found"] for each in found["lines"] if each["name"] == name]
    return value


@pytest.mark.slow
def test_the_cost_of_a_trace_is_exact(data_dir: Path, variables: dict[str, str]) -> None:
    if not TRACE.exists():
        pytest.skip(f"no trace at {TRACE}: set GULLAK_TRACE to its CSV")

    found = run_demo(data_dir, variables, "--trace", str(TRACE))

    for currency in ("USD", "INR"):
        charged = Fraction(line(found, f"{currency} exact cost = debits + remainders"))
        assert charged == cost_of_trace(found, currency) > 0


def cost_of_trace(found: dict[str, Any], currency: str) -> Fraction:
    """Price the file by the price list of the JSON: row n belongs to customer n modulo all."""
    columns = {"input_tokens": "ContextTokens", "output_tokens": "GeneratedTokens"}
    prices = [
        (columns[price["summed"]], Fraction(price["price_per_unit"]) / price["units"])
        for price in found["price_list"]
        if price["currency"] == currency and price["summed"]
    ]
    customers = found["customers"]
    with TRACE.open(newline="") as file:
        return sum(
            (
                int(row[column]) * price
                for number, row in enumerate(csv.DictReader(file))
                if customers[number % len(customers)]["currency"] == currency
                for column, price in prices
            ),
            Fraction(0),
        )


def test_ctrl_c_stops_everything_and_leaves_nothing(
    data_dir: Path, variables: dict[str, str]
) -> None:
    ready = data_dir / "ready.json"
    demo = subprocess.Popen(
        [*DEMO, "--events", "20000", "--ready-file", str(ready)],
        cwd=ROOT,
        env={**variables, "TMPDIR": str(data_dir)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        pids = json.loads(ready.read_text())["pids"]
        time.sleep(1)
        demo.send_signal(signal.SIGINT)
        code = demo.wait(STOPPED_WITHIN_S)
    finally:
        demo.kill()

    assert code == 130
    assert [role for role, pid in pids.items() if Path(f"/proc/{pid}").exists()] == []
    assert [path.name for path in data_dir.iterdir()] == []
    assert processes_of(data_dir) == []


def processes_of(folder: Path) -> list[list[str]]:
    """The command lines that name a folder: also of processes that the ready file does not list."""
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in found if any(str(folder) in word for word in words)]
