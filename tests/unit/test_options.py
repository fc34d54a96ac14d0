"""Errors for amounts, prices and times that are refused; the version."""

import sys
from importlib.metadata import version

import pytest

from support.command import commands
from worker.cli.main import main

# Whole numbers that are not money.
COUNTS = {
    "before", "declines_max", "event", "events", "ids", "limit", "max_age_days", "overlap_s",
    "port", "priority", "seed", "units", "valid_days", "workers",
}  # fmt: skip


# Every option of every command, with the words of the command.
OPTIONS = [(path, option) for path, command in commands() for option in command.params]


def of_kind(metavar: str) -> list[tuple[str, ...]]:
    return [(*path, option.opts[0]) for path, option in OPTIONS if option.metavar == metavar]


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> str:
    """Run a command that is refused; return its error."""
    monkeypatch.setattr(sys, "argv", ["gullak", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err.count("\n")) == (1, "", 1)
    return printed.err


def test_every_whole_number_option_is_money_or_a_listed_count() -> None:
    numbers = {
        option.name
        for _, option in OPTIONS
        if "int" in str(option.type_descriptor.annotation) and option.metavar != "MINOR"
    }

    assert numbers <= COUNTS


@pytest.mark.parametrize("option", of_kind("MINOR"), ids=" ".join)
@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("5.50", "5.50 USD is 550"),
        ("5.00", "5.00 USD is 500"),
        ("12,5", "12.50 USD is 1250"),
        ("$5", "5.50 USD is 550"),
        ("1_000", "5.50 USD is 550"),
    ],
)
def test_an_amount_with_a_decimal_point_is_refused_with_an_example(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: tuple[str, ...],
    text: str,
    example: str,
) -> None:
    error = refused(capsys, monkeypatch, *option[:-1], f"{option[-1]}={text}")

    name = option[-1].lstrip("-").replace("-", "_")
    assert error == (
        f"gullak: {name}: {text!r} is not a whole number of minor units (cents, paise), which have"
        f" no decimal point: {example}\n"
    )


def test_an_amount_above_the_limit_of_a_wallet_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refused(capsys, monkeypatch, "rule", "set", f"--threshold={2**63}")

    assert error == f"gullak: threshold: '{2**63}' is beyond {2**63 - 1}\n"


@pytest.mark.parametrize("text", ["0,03", ".5", "3 cents", "-1", "1e-3", "123456", "0." + "1" * 13])
def test_the_error_of_a_price_names_its_unit_and_the_decimal_point(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    assert of_kind("DECIMAL") == [("price", "create", "--per-unit")]

    error = refused(capsys, monkeypatch, "price", "create", f"--per-unit={text}")

    assert error == (
        f"gullak: per_unit: {text!r} is not a price in minor units (cents, paise) with a decimal"
        " point, such as 0.03: up to 5 digits before it, 12 after it\n"
    )


@pytest.mark.parametrize("option", of_kind("TIME"), ids=" ".join)
@pytest.mark.parametrize("text", ["2026-01-31", "2026-01-31T09:30:00", "2026-13-01T00:00:00Z", "1"])
def test_a_time_needs_a_zone(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: tuple[str, ...],
    text: str,
) -> None:
    error = refused(capsys, monkeypatch, *option[:-1], f"{option[-1]}={text}")

    name = option[-1].lstrip("-").replace("-", "_")
    wanted = "is not RFC 3339 with a time zone, such as 2026-01-31T09:30:00Z"
    assert error == f"gullak: {name}: {text!r} {wanted}\n"


def test_the_list_above_has_every_option_that_takes_a_time() -> None:
    assert sorted(of_kind("TIME")) == [
        ("credit", "--expires-at"),
        ("price", "create", "--from"),
        ("webhook", "replay", "--since"),
        ("webhook", "replay", "--until"),
    ]


def test_the_version_is_that_of_the_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gullak", "--version"])

    with pytest.raises(SystemExit) as ended:
        main()

    assert not ended.value.code
    assert capsys.readouterr().out == f"gullak {version('gullak')}\n"


def test_a_setting_that_is_not_json_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@127.0.0.1:1/shop")
    monkeypatch.setenv("GULLAK_CURRENCIES", "EUR:2")

    error = refused(capsys, monkeypatch, "business", "list")

    assert "currencies" in error
    assert "it is not JSON" in error
