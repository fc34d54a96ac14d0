"""Commands print whole ids on terminals of 80 and of 110 columns."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping

import pytest

from support.checkout_driver import CheckoutDriver
from support.command import Gullak, commands
from support.tenant import Shop, event
from worker.cli.show import print_table
from worker.settings import Settings

A_ID = re.compile(r"[a-z]{3}_[0-9A-HJKMNP-TV-Z]{26}\b")
START_OF_ID = re.compile(
    r"\b(?:bus|cus|wal|ent|mtr|prc|rul|pur|whk|msg|key|lot|pkg|pac|chg|chk|pay)_(?!id)"
)
# Ids that other systems choose can be long.
THEIRS = "a-text-without-a-space-" * 4 + "end"
PROSE = "a sentence that a person wrote when this was done, " * 3

# Every command that prints rows; CUS is the customer, ENT a debit of usage, OWN the option that
# names the business.
LISTS = (
    ("business", "list"),
    ("customer", "list", "OWN"),
    ("keys", "list", "OWN"),
    ("meter", "list", "OWN"),
    ("price", "list", "OWN"),
    ("rule", "list", "OWN"),
    ("endpoint", "list", "OWN"),
    ("package", "list", "OWN"),
    ("purchase", "list", "OWN"),
    ("providers", "list", "OWN"),
    ("providers", "events", "OWN"),
    ("checkout", "list", "--customer", "CUS", "OWN"),
    ("top-up", "list", "OWN"),
    ("charge", "list", "OWN"),
    ("webhook", "list", "OWN"),
    ("webhook", "dead", "OWN"),
    ("refused", "OWN"),
    ("balance", "CUS", "OWN"),
    ("history", "CUS", "--currency=USD", "OWN"),
    ("lots", "CUS", "OWN"),
    ("events", "OWN"),
    ("explain", "ENT", "OWN"),
)


@pytest.fixture
def gullak(charging_gullak: Gullak) -> Gullak:
    return charging_gullak


def fill(gullak: Gullak, driver: CheckoutDriver) -> None:
    """Put at least one row behind every list."""
    shop = driver.shop
    own, customer = f"--business={shop.business_id}", shop.customers[0]
    wallet = ("--customer", customer, "--currency=USD")
    shop.meter()
    shop.enter(2_000_000, key=THEIRS, reason=PROSE)
    package = driver.package()
    for command in (
        ("keys", "create", f"--name={PROSE}", own),
        ("rule", "set", "--currency=USD", "--threshold=1900000", own),
        ("endpoint", "create", f"https://example.com/{THEIRS}", f"--description={PROSE}", own),
        ("purchase", "create", *wallet[:2], "--package", package, f"--order={THEIRS}", own),
        ("checkout", "create", *wallet, "--amount=2000900", "--key=page", own),
        (
            *("top-up", "set", *wallet, "--threshold=100", "--package", package, own),
            *("--payment-method=ok", "--day-cap=1000", "--month-cap=5000"),
        ),
    ):
        gullak.made(*command)
    shop.send(event(customer), event(customer, {"tokens": "many"}, event_id=THEIRS))
    shop.drain()
    shop.run("UPDATE webhook_deliveries SET status = 'dead'")
    shop.run(
        "INSERT INTO provider_events (provider, account_id, business_id, provider_event_id, type,"
        " body, status, reason, payment_id) SELECT provider, account_id, business_id,"
        f" '{THEIRS}', 'payment.succeeded', '{{}}', 'parked', '{PROSE}', '{THEIRS}'"
        " FROM provider_accounts"
    )


PARAMETERS = {path: {each.name for each in command.params} for path, command in commands()}


def path_of(command: tuple[str, ...]) -> tuple[str, ...]:
    return command[:2] if command[:2] in PARAMETERS else command[:1]


def test_the_list_above_has_every_command_that_prints_rows() -> None:
    with_rows = {path for path, names in PARAMETERS.items() if names & {"limit", "wide"}}

    # The limit of an overdraft is money.
    assert with_rows - {("wallet", "overdraft")} <= {path_of(command) for command in LISTS}


def ids(text: str) -> list[str]:
    return sorted([*A_ID.findall(text), *re.findall(THEIRS, text)])


@pytest.mark.parametrize("width", [80, 110])
def test_every_list_shows_whole_ids(
    gullak: Gullak, driver: CheckoutDriver, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    fill(gullak, driver)
    (debit,) = (entry.entry_id for entry in driver.shop.entries() if entry.kind == "usage")
    own = f"--business={driver.shop.business_id}"
    names = {"CUS": driver.shop.customers[0], "ENT": debit, "OWN": own}
    for command in LISTS:
        words = [names.get(word, word) for word in command]
        for more in ([], ["--wide"]) if "wide" in PARAMETERS[path_of(command)] else ([],):
            piped = gullak(*words, *more).out
            with monkeypatch.context() as terminal:
                terminal.setenv("TTY_COMPATIBLE", "1")
                terminal.setenv("COLUMNS", str(width))
                shown = plain(gullak(*words, *more).out)

            assert ids(shown) == ids(piped) != [], shown
            assert len(START_OF_ID.findall(shown)) == len(A_ID.findall(shown)), shown


def test_a_history_has_one_line_per_entry_at_110_columns(
    config: Settings, shop: Shop, variables: Mapping[str, str]
) -> None:
    shop.meter()
    entered = [shop.enter(5000, reason="first top-up"), shop.enter(150, debit=True, reason="x")]
    customer = shop.customers[0]

    lines = on_terminal(config, variables, 110, "history", customer, "--currency=USD").splitlines()

    rows = [line for line in lines if A_ID.search(line) and not line.startswith("wal_")]
    assert [A_ID.findall(row) for row in rows] == [[each.entry_id] for each in reversed(entered)]
    assert rows[0].split()[2:4] == ["-1.50", "48.50"]
    assert "manual: first top-up" in rows[1]
    assert all(len(line) <= 110 for line in lines)


def on_terminal(config: Settings, variables: Mapping[str, str], width: int, *arguments: str) -> str:
    """Return the output of a command on a real terminal of this width."""
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    command = [sys.executable, "-c", "from worker.cli.main import main; main()", *arguments]
    urls = {
        "DATABASE_URL": config.database_url.get_secret_value(),
        "NO_COLOR": "1",
        "TERM": "vt100",
    }
    # A width in the environment would override the width of the terminal.
    kept = {name: value for name, value in variables.items() if name != "COLUMNS"}
    seen = b""
    with subprocess.Popen(command, stdin=inner, stdout=inner, env={**kept, **urls}) as running:
        os.close(inner)
        while True:
            try:
                read = os.read(terminal, 4096)
            except OSError:  # the other end is closed: the process has ended
                break
            seen += read
    os.close(terminal)
    assert running.returncode == 0, seen
    return plain(seen.decode().replace("\r\n", "\n"))


def plain(text: str) -> str:
    """Return the text without its escape sequences."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_prose_is_folded_at_spaces_and_a_name_cannot_rewrite_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "40")

    print_table(("id", "why~"), [("i" * 20, "one two three four five"), ("j", "\x1b[2Jgone")])

    assert [line.rstrip() for line in plain(capsys.readouterr().out).splitlines()] == [
        "id                    why",
        "iiiiiiiiiiiiiiiiiiii  one two three four",
        "                      five",
        "j                     \\x1b[2Jgone",
    ]
