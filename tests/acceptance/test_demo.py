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
    assert [line for line in found["lines"] if line["ok"] is not True] == []
    return {**found, "printed": done.stdout}


def test_the_demo_reconciles_after_the_worker_was_killed(
    data_dir: Path, variables: dict[str, str]
) -> None:
    found = run_demo(data_dir, variables, "--events", "3000")

    assert found["events"] == 3000
    assert found["in"] == found["posted"] + found["duplicate"] + found["refused"]
    assert 0.4 < found["over_http"] / found["events"] < 0.6
    assert found["alerts"]["received"] > 0
    assert found["duplicate"] > 0
    assert found["refused"] > 0
    assert [(kill["role"], kill["recovered"]) for kill in found["kills"]] == [("worker", True)]
    assert 0 < found["kills"][0]["at_event"] < 3000
    assert_bought(found)
    shown = {shape(line) for line in found["printed"].splitlines()}
    assert [line for line in lines_in_readme() if shape(line) not in shown] == []


def lines_in_readme() -> list[str]:
    """The part of the demo's output that README shows."""
    readme = (ROOT / "README.md").read_text()
    return readme.partition("what it prints:\n\n```text\n")[2].partition("```")[0].splitlines()


def shape(line: str) -> str:
    """A line with a sign for each number, and single spaces."""
    return " ".join(re.sub(r"\d[\d,.]*", "#", line).split())


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
    payments = found["payments"]
    counts = {name: payments[name] for name in ("made", "declined", "settled_once", "top_ups")}

    assert counts == {"made": 8, "declined": 1, "settled_once": 8, "top_ups": 1}
    assert payments["told_by_webhook"] == 9
    assert payments["charged"] == payments["credited"]
    assert all(amount > 0 for amount in payments["charged"].values())


@pytest.mark.slow
def test_the_cost_of_a_trace_is_exact(data_dir: Path, variables: dict[str, str]) -> None:
    if not TRACE.exists():
        pytest.skip(f"no trace at {TRACE}: set GULLAK_TRACE to its CSV")

    found = run_demo(data_dir, variables, "--trace", str(TRACE))

    for currency in ("USD", "INR"):
        charged = found["debits"][currency] + Fraction(found["remainders"][currency])
        assert charged == cost_of_trace(found, currency)
        assert charged == Fraction(found["exact_cost"][currency])
        assert charged > 0


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
        code = demo.wait(60)
    finally:
        demo.kill()

    assert code == 130
    assert [role for role, pid in pids.items() if Path(f"/proc/{pid}").exists()] == []
    assert [path.name for path in data_dir.iterdir()] == []
    assert processes_of(data_dir) == []


def processes_of(folder: Path) -> list[list[str]]:
    """The command lines that name a folder: also of processes that the ready file does not list."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(str(folder) in word for word in line)]
