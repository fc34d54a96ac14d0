import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from metering.buffer.stream import UsageBuffer
from metering.clock import to_wire
from metering.errors import BufferFullError
from support.command import Gullak
from support.tenant import Shop
from worker.cli.importing.progress import Progress
from worker.cli.importing.usage_file import LINE_BYTES_MAX
from worker.settings import Settings

NOW = to_wire(datetime.now(UTC))
HEADER = "event_id,customer_id,event_name,timestamp,tokens,model\n"


@pytest.fixture
def priced(shop: Shop) -> Shop:
    """A shop that charges 0.25 cents per token."""
    shop.meter(prices={"USD": "0.25"})
    return shop


def usage(customer: str, number: int, **fields: object) -> dict[str, object]:
    return {
        "event_id": f"e{number}",
        "customer_id": customer,
        "event_name": "llm.completion",
        "timestamp": NOW,
        "metadata": {"tokens": 4},
    } | fields


def write(path: Path, lines: Iterable[object]) -> Path:
    path.write_bytes(
        b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
            for line in lines
        )
    )
    return path


def refusals(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ndjson_is_charged_and_a_second_run_sends_nothing(
    gullak: Gullak, priced: Shop, tmp_path: Path
) -> None:
    file = write(tmp_path / "u.ndjson", [usage(priced.customers[0], n) for n in range(2500)])

    first = gullak("import", str(file), "--json")
    outcome = priced.drain()
    second = gullak("import", str(file), "--json")

    assert (first.code, first.json["sent"], first.json["was_finished"]) == (0, 2500, False)
    assert (second.code, second.json["sent"], second.json["was_finished"]) == (0, 2500, True)
    assert (outcome.posted, priced.charged()) == (2500, 2500)
    assert priced.drain().posted == 0
    assert not (tmp_path / "u.ndjson.refused.ndjson").exists()


def test_a_file_that_has_grown_is_continued(gullak: Gullak, priced: Shop, tmp_path: Path) -> None:
    file = write(tmp_path / "u.ndjson", [usage(priced.customers[0], 1)])
    gullak("import", str(file))
    with file.open("a") as more:
        more.write(json.dumps(usage(priced.customers[0], 2)))

    result = gullak("import", str(file), "--json")

    assert (result.json["sent"], result.json["was_finished"]) == (2, False)
    assert priced.drain().posted == 2


def test_csv_columns_become_metadata_with_exact_numbers(
    gullak: Gullak, priced: Shop, tmp_path: Path
) -> None:
    customer = priced.customers[0]
    rows = [
        f'a,{customer},llm.completion,{NOW},4,"large, new"',
        f"b,{customer},llm.completion,{NOW},0.123456789012,",
        f"c,{customer},llm.completion,{NOW},12345678901.123456789012,",
        f"d,{customer},llm.completion,{NOW},0.00022500000000000002,",
        f"e,{customer},llm.completion,{NOW},2.5e-7,",
        f"f,{customer},llm.completion,{NOW},10.50,",
    ]
    (tmp_path / "u.csv").write_bytes(b"\xef\xbb\xbf" + (HEADER + "\r\n".join(rows)).encode())

    result = gullak("import", str(tmp_path / "u.csv"), "--json")
    priced.drain()

    assert (result.code, result.json["sent"]) == (0, 6)
    kept = priced.rows("SELECT event_id, metadata FROM usage_events ORDER BY event_id")
    assert kept == [
        ("a", {"tokens": 4, "model": "large, new"}),
        ("b", {"tokens": 0.123456789012}),
        ("c", {"tokens": "12345678901.123456789012"}),
        ("d", {"tokens": 0.00022500000000000002}),
        ("e", {"tokens": "2.5e-7"}),
        ("f", {"tokens": "10.50"}),
    ]
    assert priced.charged() == Decimal("12345678915.747138828024") / 4


IDS = (
    *("1e5", "1E5", "1e+16", "5001173100E7", "007", "-0", "00", "1_000", " 12", "12 ", "+1", ".5"),
    *("NaN", "inf", "1.10", "9223372036854775808", "12345678901234567890123", "0x1F", "true", "٣"),
    "9007199254740993.0",
)
NUMBERS = ("0", "12", "-5", "9223372036854775807", "1.0", "0.5", "-2.25", "0.1")


def test_a_csv_cell_is_a_number_only_if_it_writes_back_as_it_was(
    gullak: Gullak, priced: Shop, tmp_path: Path
) -> None:
    cells = [*IDS, *NUMBERS]
    rows = [
        f"h{n},{priced.customers[0]},llm.completion,{NOW},1,{cell}" for n, cell in enumerate(cells)
    ]
    (tmp_path / "u.csv").write_text(HEADER.replace("model", "request_hash") + "\n".join(rows))

    assert gullak("import", str(tmp_path / "u.csv")).code == 0
    priced.drain()

    kept = dict(priced.rows("SELECT event_id, metadata FROM usage_events"))
    found = [kept[f"h{n}"]["request_hash"] for n in range(len(cells))]
    assert found[: len(IDS)] == list(IDS)
    assert [str(value) for value in found] == cells
    assert all(not isinstance(value, str) for value in found[len(IDS) :])


def test_the_columns_of_an_export_keep_their_values(
    gullak: Gullak, priced: Shop, tmp_path: Path
) -> None:
    """One line of an LLM proxy's own export, with its columns named."""
    file = tmp_path / "spend.csv"
    file.write_text(
        "generation_id,created_at,cost_total,cost_cache,tokens,model,name,cancelled,user\n"
        f"gen-1,{NOW},0.0123,,10389,openai/gpt-oss-120b,llm.completion,false,"
        f"{priced.customers[0]}\n"
    )

    result = gullak(
        *("import", str(file), "--event-id-column=generation_id", "--customer-column=user"),
        *("--event-column=name", "--timestamp-column=created_at"),
    )
    priced.drain()

    assert result.code == 0
    ((kept,),) = priced.rows("SELECT metadata FROM usage_events")
    assert kept == {
        "cost_total": 0.0123,
        "tokens": 10389,
        "model": "openai/gpt-oss-120b",
        "cancelled": "false",
    }


def test_a_csv_column_called_metadata_is_a_json_object_beside_the_others(
    gullak: Gullak, priced: Shop, tmp_path: Path
) -> None:
    start = f"{priced.customers[0]},llm.completion,{NOW}"
    rows = [
        f'a,{start},"{{""tokens"": 4, ""cached"": true}}",large',
        f"b,{start},{{}},",
        f"c,{start},,small",
        f'd,{start},"{{""tokens"": 4",',
        f"e,{start},[4],",
        f'f,{start},"{{""model"": ""tiny""}}",large',
        f'g,{start},"{{""tokens"": 4, ""tokens"": 400}}",',
    ]
    header = HEADER.replace("tokens", "metadata")
    (tmp_path / "u.csv").write_text(header + "\n".join(rows))

    result = gullak("import", str(tmp_path / "u.csv"), "--json")
    priced.drain()

    assert (result.code, result.json["sent"], result.json["refused"]) == (2, 3, 4)
    kept = priced.rows("SELECT event_id, metadata FROM usage_events WHERE event_id = 'a'")
    assert kept == [("a", {"tokens": 4, "cached": True, "model": "large"})]
    assert priced.charged() == 1
    refused = refusals(tmp_path / "u.csv.refused.ndjson")
    assert [(each["line"], each["field"]) for each in refused] == [
        (5, "metadata"),
        (6, "metadata"),
        (7, "metadata.model"),
        (8, "metadata.tokens"),
    ]
    reasons = ("is not JSON", "is not a JSON object", "is given twice", "is given twice")
    for part, each in zip(reasons, refused, strict=True):
        assert part in each["reason"]


def test_csv_columns_may_have_other_names(gullak: Gullak, priced: Shop, tmp_path: Path) -> None:
    file = tmp_path / "u.csv"
    file.write_text(f"id,who,what,at,tokens\n1,{priced.customers[0]},llm.completion,{NOW},4\n")

    result = gullak(
        *("import", str(file), "--event-id-column=id", "--customer-column=who"),
        *("--event-column=what", "--timestamp-column=at"),
    )

    assert result.code == 0
    assert priced.drain().posted == 1


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("event_id,customer_id,event_name,tokens\n", "has no column 'timestamp'"),
        (HEADER.replace("model", "tokens"), "one that is there twice"),
        (HEADER.replace("model", ""), "a column without a name"),
        ("", "is missing: the file is empty"),
    ],
)
def test_a_csv_header_that_cannot_work_sends_nothing(
    gullak: Gullak, priced: Shop, tmp_path: Path, header: str, reason: str
) -> None:
    (tmp_path / "u.csv").write_text(header)

    result = gullak("import", str(tmp_path / "u.csv"), "--business", priced.business_id)

    assert (result.code, result.err.count("\n")) == (1, 1)
    assert reason in result.err


def test_bad_lines_go_to_the_refusals_and_the_rest_is_sent(
    gullak: Gullak, priced: Shop, tmp_path: Path
) -> None:
    customer = priced.customers[0]
    long_ago = to_wire(datetime.now(UTC) - timedelta(days=60))
    bad: list[tuple[object, str, str]] = [
        (b"{", "line", "is not JSON"),
        (b"[1]", "line", "is not a JSON object"),
        (b'{"event_id": "\xff"}', "line", "is not JSON"),
        (json.dumps(usage(customer, 1)).replace("4", "NaN").encode(), "line", "is not JSON"),
        (b"x" * (LINE_BYTES_MAX + 5), "line", "is longer than"),
        (usage(customer, 2, event_id=None), "event_id", "is missing"),
        (usage(customer, 3, timestamp=None), "timestamp", "is missing"),
        (usage(customer, 4, timestamp=long_ago), "timestamp", "is too old"),
        (usage(customer, 5, metadata={"tokens": 1e308}), "metadata.tokens", "is absurd"),
        (usage(customer, 6, metadata={"tokens": {}}), "metadata.tokens", "is nested"),
        (usage(customer, 7, colour="red"), "colour", "is not a field of a usage event"),
        (usage(customer, 8, event_id=["list"]), "event_id", "is of type list, not a text"),
        (usage(" ", 9), "customer_id", "is blank"),
        (b'{"event_id": "a", "timestamp": "b", "event_id": "c"}', "event_id", "is given twice"),
    ]
    lines = [usage(customer, 100), *(line for line, _, _ in bad), b"", usage(customer, 101)]
    file = write(tmp_path / "u.ndjson", lines)

    result = gullak("import", str(file), "--json")
    written = refusals(tmp_path / "u.ndjson.refused.ndjson")

    assert (result.code, result.json["sent"], result.json["refused"]) == (2, 2, len(bad))
    assert [(r["line"], r["field"]) for r in written] == [
        (place, field) for place, (_, field, _) in enumerate(bad, 2)
    ]
    for refusal, (_, _, reason) in zip(written, bad, strict=True):
        assert reason in refusal["reason"]
        assert len(refusal["input"]) <= 1000
    assert priced.drain().posted == 2


def test_bad_csv_lines_do_not_swallow_the_lines_after_them(
    gullak: Gullak, priced: Shop, tmp_path: Path
) -> None:
    customer = priced.customers[0]
    good = f"%s,{customer},llm.completion,{NOW},4,m\n"
    bad = [
        f'x,{customer},llm.completion,{NOW},4,"never closed\n'.encode(),
        f"x,{customer},llm.completion,{NOW},4\n".encode(),
        f"x,{customer},llm.completion,{NOW},4,\xff\n".encode("latin-1"),
        f"x,{customer},llm.completion,{NOW},{'x' * 501},m\n".encode(),
        f",{customer},llm.completion,{NOW},4,m\n".encode(),
        f"x,{customer},llm.completion,yesterday,4,m\n".encode(),
    ]
    content = b"".join((good % number).encode() + line for number, line in enumerate(bad))
    (tmp_path / "u.csv").write_bytes(HEADER.encode() + content)

    result = gullak("import", str(tmp_path / "u.csv"), "--refused", str(tmp_path / "r"), "--json")

    assert (result.code, result.json["sent"], result.json["refused"]) == (2, 6, 6)
    assert [(r["line"], r["field"]) for r in refusals(tmp_path / "r")] == [
        (3, "line"),
        (5, "line"),
        (7, "line"),
        (9, "metadata.tokens"),
        (11, "event_id"),
        (13, "timestamp"),
    ]
    assert priced.drain().posted == 6


def test_a_wider_age_takes_a_back_fill(gullak: Gullak, priced: Shop, tmp_path: Path) -> None:
    long_ago = to_wire(datetime.now(UTC) - timedelta(days=300))
    file = write(tmp_path / "u.ndjson", [usage(priced.customers[0], 1, timestamp=long_ago)])

    result = gullak("import", str(file), "--max-age-days=301", "--json")

    assert (result.code, result.json["sent"]) == (0, 1)


def test_the_ledger_judges_an_id_that_is_twice_in_a_file(
    gullak: Gullak, priced: Shop, tmp_path: Path
) -> None:
    one, other = (
        usage(priced.customers[0], 1),
        usage(priced.customers[0], 1, metadata={"tokens": 9}),
    )
    file = write(tmp_path / "u.ndjson", [one, one, other])

    result = gullak("import", str(file), "--json")
    outcome = priced.drain()

    assert (result.code, result.json["sent"]) == (0, 3)
    assert (outcome.posted, outcome.duplicate, outcome.refused) == (1, 1, 1)


@pytest.mark.parametrize("dies_at_save", [2, 3])
def test_an_import_that_died_before_it_saved_its_progress_repeats_one_request(
    gullak: Gullak, priced: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at_save: int
) -> None:
    lines = [b"{" if n % 100 == 0 else usage(priced.customers[0], n) for n in range(3000)]
    file = write(tmp_path / "u.ndjson", lines)
    saves, save = iter(range(1, 100)), Progress.save

    def die(progress: Progress, path: Path) -> None:
        if next(saves) == dies_at_save:
            raise KeyboardInterrupt
        save(progress, path)

    monkeypatch.setattr(Progress, "save", die)
    assert gullak("import", str(file)).code != 0

    result = gullak("import", str(file), "--json")
    outcome = priced.drain()

    assert (result.code, result.json["sent"], result.json["refused"]) == (2, 2970, 30)
    assert [r["line"] for r in refusals(tmp_path / "u.ndjson.refused.ndjson")] == [
        n + 1 for n in range(0, 3000, 100)
    ]
    assert (outcome.posted, outcome.duplicate, priced.charged()) == (2970, 1000, 2970)


def test_a_killed_import_goes_on_and_charges_each_event_once(
    gullak: Gullak, priced: Shop, config: Settings, variables: Mapping[str, str], tmp_path: Path
) -> None:
    file = write(tmp_path / "u.ndjson", [usage(priced.customers[0], n) for n in range(20_000)])
    urls = config.model_dump(mode="json", include={"database_url", "redis_url"})
    process = subprocess.Popen(
        [sys.executable, "-c", "from worker.cli.main import main; main()", "import", str(file)],
        env={**variables, **{name.upper(): url for name, url in urls.items()}},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_offset(tmp_path / "u.ndjson.progress", file.stat().st_size // 4)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    begun = priced.drain().posted

    result = gullak("import", str(file), "--json")
    after = priced.drain()

    assert 0 < begun < 20_000
    assert (result.code, result.json["sent"]) == (0, 20_000)
    assert begun + after.posted == 20_000
    assert priced.charged() == 20_000
    assert gullak("verify").code == 0


def wait_for_offset(progress: Path, offset: int) -> None:
    deadline = monotonic() + 60
    while monotonic() < deadline:
        if progress.exists() and json.loads(progress.read_text())["offset"] >= offset:
            return
        sleep(0.002)
    pytest.fail("the import did not begin")


def test_a_full_buffer_is_waited_for(
    gullak: Gullak, priced: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "u.ndjson", [usage(priced.customers[0], 1)])
    refusals_left, append = iter([1, 2]), UsageBuffer.append

    def full_at_first(buffer: UsageBuffer, *arguments: Any) -> None:
        if next(refusals_left, None):
            raise BufferFullError(0)
        append(buffer, *arguments)

    monkeypatch.setattr(UsageBuffer, "append", full_at_first)

    assert gullak("import", str(file), "--json").json["sent"] == 1


def test_another_file_of_the_same_name_is_refused(
    gullak: Gullak, priced: Shop, tmp_path: Path
) -> None:
    file = write(tmp_path / "u.ndjson", [usage(priced.customers[0], 1)])
    gullak("import", str(file))
    write(file, [usage(priced.customers[0], 2)])

    result = gullak("import", str(file))

    assert result.code == 1
    assert "u.ndjson.progress" in result.err


def test_no_file_of_the_user_is_overwritten(gullak: Gullak, priced: Shop, tmp_path: Path) -> None:
    file = write(tmp_path / "u.ndjson", [b"{", usage(priced.customers[0], 1)])
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")

    assert gullak("import", str(file), "--refused", str(mine)).code == 1
    assert gullak("import", str(file), "--refused", str(file)).code == 1
    assert mine.read_text() == "mine"
    assert priced.drain().posted == 0


def test_an_unknown_business_sends_nothing(gullak: Gullak, priced: Shop, tmp_path: Path) -> None:
    file = write(tmp_path / "u.ndjson", [usage(priced.customers[0], 1)])

    result = gullak("import", str(file), "--business=bus_no")

    assert (result.code, result.err) == (1, "gullak: no business 'bus_no'\n")
    assert priced.buffer.backlog().events == 0


def test_it_prints_what_the_events_cost_and_which_will_be_refused(
    gullak: Gullak, priced: Shop, tmp_path: Path
) -> None:
    customer = priced.customers[0]
    lines = [
        usage(customer, 1),
        usage(customer, 2, metadata={"tokens": 0.5}),
        usage(customer, 3, event_name="no.meter"),
        usage("cus_nobody", 4),
        usage(customer, 5, metadata={"tokens": "many"}),
    ]
    file = write(tmp_path / "u.ndjson", lines)
    once = gullak("import", str(write(tmp_path / "first.ndjson", lines[:1])))
    priced.drain()

    result = gullak("import", str(file), "--json")
    (tmp_path / "u.ndjson.progress").unlink()
    printed = gullak("import", str(file)).out
    priced.drain()

    assert "1 cost 1 USD (minor units" in once.out
    assert result.json["this_run"] == {
        "charged": 1,
        "cost_minor": {"USD": "0.125"},
        "kept_free": 0,
        "repeated": 1,
        "will_be_refused": {"bad_quantity": 1, "unknown_customer": 1, "unmetered": 1},
    }
    assert "1 cost 0.125 USD" in printed
    assert "1 were sent before" in printed
    assert "1 will be refused: unmetered; see gullak refused" in printed
    assert priced.charged() == Decimal("1.125")
    assert priced.rows("SELECT count(*) FROM refused_events") == [(3,)]


def test_events_that_are_too_old_name_the_option_that_takes_them(
    gullak: Gullak, priced: Shop, tmp_path: Path
) -> None:
    long_ago = to_wire(datetime.now(UTC) - timedelta(days=300))
    customer = priced.customers[0]
    lines = [usage(customer, 1, timestamp=long_ago), usage(customer, 2)]
    file = write(tmp_path / "u.ndjson", lines)

    first = gullak("import", str(file))
    second = gullak("import", str(file), "--max-age-days=301")
    third = gullak("import", str(file), "--max-age-days=301")
    outcome = priced.drain()

    assert (first.code, second.code, third.code) == (2, 0, 0)
    assert "1 are too old: --max-age-days takes them" in first.out
    assert second.out.startswith("2 sent, 0 refused")
    assert third.out.startswith("imported before: 2 sent")
    assert (outcome.posted, outcome.duplicate, priced.charged()) == (2, 1, 2)
    assert not (tmp_path / "u.ndjson.refused.ndjson").exists()
