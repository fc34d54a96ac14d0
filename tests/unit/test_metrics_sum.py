import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict, mmap_key

from worker.metrics import fold_ended, metrics_text


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write(path: Path, name: str, value: float, written_at: float = 0) -> None:
    values = MmapedDict(str(path))
    values.write_value(mmap_key(name, name, [], [], "help"), value, written_at)
    values.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_counters_of_ended_processes_stay_in_the_sum_but_not_in_files(tmp_path: Path) -> None:
    pid = os.getpid()
    for value in (1, 2):
        write(tmp_path / f"counter_{ended_pid()}.db", "runs_total", value)
    write(tmp_path / f"counter_{pid}.db", "runs_total", 4)

    text = metrics_text(tmp_path).decode()

    assert "runs_total 7.0" in text
    assert names(tmp_path) == {"counter_0.db", f"counter_{pid}.db"}


def test_folding_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path / f"counter_{ended_pid()}.db", "runs_total", 3)

    fold_ended(tmp_path)
    fold_ended(tmp_path)

    assert "runs_total 3.0" in metrics_text(tmp_path).decode()


def test_the_most_recent_gauge_wins_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / f"gauge_mostrecent_{ended_pid()}.db", "backlog", 9, written_at=200)
    write(tmp_path / f"gauge_mostrecent_{ended_pid()}.db", "backlog", 5, written_at=100)

    assert "backlog 9.0" in metrics_text(tmp_path).decode()


def test_live_gauges_end_with_their_process(tmp_path: Path) -> None:
    write(tmp_path / f"gauge_livesum_{ended_pid()}.db", "busy", 1)

    fold_ended(tmp_path)

    assert names(tmp_path) == set()


def test_an_empty_folder_has_no_metrics(tmp_path: Path) -> None:
    assert metrics_text(tmp_path) == b""
