import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from redis import Redis

from metering.ids import BusinessId
from support.command import Gullak
from support.tenant import Shop, event
from worker.cli.target import settings_of
from worker.settings import Settings


@pytest.fixture
def account(gullak: Gullak) -> tuple[str, str, str]:
    """The options that name a customer's wallet of the only business: `-c ID --currency USD`."""
    gullak.made("business", "create", "Acme")
    customer = gullak.made("customer", "create", "--email", "a@example.com", "--name", "Ann")
    return "--currency=USD", "--customer", customer


def test_a_new_customer_has_a_wallet_at_zero_in_every_currency(
    gullak: Gullak, account: tuple[str, str, str]
) -> None:
    shown = gullak("balance", account[2], "--json").json

    assert [(w["currency"], w["balance_minor"], w["balance"]) for w in shown] == [
        ("INR", 0, "0.00"),
        ("USD", 0, "0.00"),
    ]


def test_an_amount_is_shown_in_both_units(gullak: Gullak, account: tuple[str, str, str]) -> None:
    printed = gullak("credit", *account, "--amount", "1230", "--reason", "gift").out

    assert "1230 (12.30 USD)" in printed
    assert "1230 (12.30 USD)" in gullak("balance", account[2]).out


def test_a_repeated_key_writes_nothing_and_says_so(
    gullak: Gullak, account: tuple[str, str, str]
) -> None:
    command = ("credit", *account, "--amount=500", "--reason=gift", "--key=k1", "--json")
    first, second = gullak(*command).json, gullak(*command).json

    assert (first["replayed"], second["replayed"]) == (False, True)
    assert second["entry_id"] == first["entry_id"]
    assert second["balance_minor"] == 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--amount=400", "--reason=x", "--key=k1"), "'k1' was used before with other content"),
        (("--amount=0", "--reason=x"), "amount: "),
        (("--amount=1", "--reason=x", "--currency=EUR"), "currency: 'EUR' is not one of"),
        (("--amount=1", "--reason=x", "--customer=cus_no"), "no customer 'cus_no'"),
        (("--amount=1", "--reason=x", "--business=bus_no"), "no business 'bus_no'"),
        (("--amount=501", "--reason=x"), "balance 500 does not cover a debit of 501"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_field_and_exits_1(
    gullak: Gullak, account: tuple[str, str, str], arguments: tuple[str, ...], message: str
) -> None:
    gullak("credit", *account, "--amount=500", "--reason=gift", "--key=k1")

    result = gullak("debit", *account, *arguments)

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("gullak: ")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_the_history_is_paged_by_version(gullak: Gullak, account: tuple[str, str, str]) -> None:
    for number in range(3):
        gullak("credit", *account, "--amount=10", f"--reason=gift {number}")
    customer, currency = account[2], account[0]

    page = gullak("history", customer, currency, "--limit=2", "--json").json
    rest = gullak("history", customer, currency, "--before=2", "--json").json

    assert [entry["version"] for entry in page] == [3, 2]
    assert [entry["reason"] for entry in rest] == ["gift 0"]
    assert "gift 2" in gullak("history", customer, currency).out


def test_the_business_is_needed_once_there_are_two(gullak: Gullak) -> None:
    one = gullak.made("business", "create", "One")
    gullak.made("business", "create", "Two")

    unnamed = gullak("meter", "list")
    named = gullak("meter", "list", "--business", one)

    assert (unnamed.code, unnamed.err) == (
        1,
        "gullak: business: there are 2: name one with --business\n",
    )
    assert (named.code, named.out) == (0, "none\n")
    assert gullak("--business", one, "--json", "meter", "list").json == []
    assert [row["name"] for row in gullak("business", "list", "--json").json] == ["One", "Two"]


def test_a_meter_with_a_filter_gets_a_price(gullak: Gullak) -> None:
    gullak.made("business", "create", "Acme")
    clause = {"key": "model", "operator": "equals", "value": "large"}
    condition = json.dumps({"conjunction": "and", "clauses": [clause]})
    meter = gullak.made(
        *("meter", "create", "--name=in", "--event-name=llm", "--unit=tokens"),
        *("--aggregation=sum", "--key=tokens", "--filter", condition),
    )
    price = ("price", "create", "--meter", meter, "--currency=USD")
    gullak.made(*price, "--per-unit=0.25", "--units=1000", "--from=2026-01-01T00:00:00Z")

    (shown,) = gullak("price", "list", "--json").json

    assert (shown["price_per_unit"], shown["units"]) == ("0.25", 1000)
    assert shown["effective_from"] == "2026-01-01T00:00:00.000000Z"
    assert gullak("meter", "list", "--json").json[0]["filter"]["clauses"] == [clause]
    assert gullak("meter", "archive", meter).code == 0
    assert gullak("meter", "list", "--json").json[0]["archived_at"] is not None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--filter={",), "filter: is not JSON"),
        (('--filter={"conjunction":"or","clauses":[]}',), "filter.clauses"),
        (("--aggregation=sum",), "aggregation: "),
        (("--event-name= ",), "event_name: "),
    ],
)
def test_a_bad_meter_is_refused_by_field(
    gullak: Gullak, options: tuple[str, ...], field: str
) -> None:
    gullak.made("business", "create", "Acme")

    result = gullak("meter", "create", "--name=in", "--event-name=llm", "--unit=token", *options)

    assert result.code == 1
    assert field in result.err
    assert gullak("meter", "list", "--json").json == []


def test_rules_are_set_listed_and_deleted(gullak: Gullak, account: tuple[str, str, str]) -> None:
    rule = gullak.made("rule", "set", "--currency=USD", "--threshold=-500", "--recover-at=100")
    gullak.made("rule", "set", *account, "--threshold=0")

    listed = gullak("rule", "list", "--json").json
    deleted = gullak("rule", "delete", rule)

    assert [(r["threshold_minor"], r["recover_at_minor"]) for r in listed] == [(-500, 100), (0, 1)]
    assert deleted.code == 0
    assert len(gullak("rule", "list", "--json").json) == 1
    assert gullak("rule", "delete", rule).code == 1
    assert gullak("rule", "set", "--currency=XXX", "--threshold=1").code == 1


def test_the_secret_of_an_endpoint_is_shown_once(gullak: Gullak) -> None:
    gullak.made("business", "create", "Acme")
    made = gullak(
        "endpoint", "create", "https://example.com/h", "--type=credit.added", "--json"
    ).json
    endpoint = made["endpoint_id"]

    assert gullak("endpoint", "disable", endpoint).code == 0
    listed = gullak("endpoint", "list", "--json")
    assert listed.json[0]["disabled_at"] is not None
    assert made["secret"] not in listed.out
    assert gullak("endpoint", "enable", endpoint).code == 0
    assert gullak("endpoint", "rotate-secret", endpoint).out.startswith("whsec_")
    assert gullak("endpoint", "delete", endpoint).code == 0
    assert gullak("endpoint", "list", "--json").json == []


def test_refused_events_are_listed_by_reason_and_sent_again(gullak: Gullak, shop: Shop) -> None:
    shop.meter(prices={"USD": "1"})
    shop.send(event("cus_unknown", event_id="e1"), event(shop.customers[0], {"tokens": 1}))
    shop.drain()

    listed = gullak("refused", "--reason=unknown_customer", "--json").json
    none = gullak("refused", "--reason=no_price", "--business", shop.business_id, "--json").json
    sent = gullak("replay", "--event-id=e1", "--json").json

    assert [(r["event_id"], r["reason"]) for r in listed] == [("e1", "unknown_customer")]
    assert none == []
    assert sent == {"sent": 1}
    assert shop.drain().refused == 1


def test_webhooks_are_replayed_only_by_a_condition(gullak: Gullak) -> None:
    gullak.made("business", "create", "Acme")

    assert gullak("webhook", "dead", "--json").json == []
    assert gullak("webhook", "replay").code == 1
    assert gullak("webhook", "replay", "--since=yesterday").err.startswith("gullak: since: ")
    since = gullak("webhook", "replay", "--since=2026-01-01T00:00:00Z", "--json")
    assert since.json == {"due": 0}


def test_a_paid_order_is_recorded_once_and_wakes_a_worker(
    shop: Shop, config: Settings, variables: Mapping[str, str]
) -> None:
    urls = config.model_dump(mode="json", include={"database_url", "redis_url"})
    record = (
        *(sys.executable, "-c", "from worker.cli.main import main; main()", "purchase", "record"),
        *("--customer", shop.customers[0], "--currency=USD", "--paid=900", "--order=o-1", "--json"),
    )

    first, second = (
        subprocess.run(
            record,
            check=True,
            capture_output=True,
            env={**variables, **{name.upper(): url for name, url in urls.items()}},
        ).stdout
        for _ in range(2)
    )

    assert json.loads(first) == json.loads(second)
    assert json.loads(first)["worker_woken"] is True
    with Redis.from_url(config.celery_broker_url()) as broker:
        assert broker.llen("purchase") == 2
    assert shop.rows("SELECT price_minor, status, is_due FROM purchases") == [
        (900, "pending", True)
    ]


def test_a_server_that_does_not_answer_is_named_without_its_password(
    gullak: Gullak, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hidden@127.0.0.1:1/shop")

    result = gullak("business", "list")

    assert result.code == 1
    assert "Postgres at 127.0.0.1:1/shop does not answer" in result.err
    assert "hidden" not in result.err


def test_a_database_without_tables_names_the_command_that_migrates(
    gullak: Gullak, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)

    result = gullak("business", "list")

    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "gullak migrate" in result.err


def test_without_a_server_the_error_names_the_command_that_starts_one(
    gullak: Gullak, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.chdir(tmp_path)

    result = gullak("business", "list")

    assert result.code == 1
    assert "gullak up" in result.err


def test_the_environment_overrides_the_stack_in_the_default_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:6379/0")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    accounts = {
        "postgres_port": 1,
        "postgres_password": "p",
        "redis_port": 2,
        "redis_password": "r",
    }
    (tmp_path / ".gullak").mkdir()
    (tmp_path / ".gullak" / "stack.json").write_text(json.dumps(accounts))

    default, named = settings_of(None), settings_of(tmp_path / ".gullak")

    found = "postgresql://gullak:p@127.0.0.1:1/gullak"
    assert default.database_url.get_secret_value() == found
    assert default.redis_url.get_secret_value() == "redis://elsewhere:6379/0"
    assert named.redis_url.get_secret_value() == "redis://:r@127.0.0.1:2/0"


def test_a_name_that_looks_like_markup_is_not_read_as_markup(gullak: Gullak) -> None:
    business = BusinessId(gullak.made("business", "create", "[red]Acme[/nope]"))

    listed = gullak("business", "list").out

    assert "[red]Acme[/nope]" in listed
    assert business in listed


def test_customers_are_listed_page_by_page_and_found_by_email(gullak: Gullak) -> None:
    gullak.made("business", "create", "Acme")
    made = [
        gullak.made("customer", "create", f"--email={name}@example.com", f"--name={name}")
        for name in ("ann", "bob", "cid")
    ]

    first = gullak("customer", "list", "--limit=2")
    rest = gullak("customer", "list", "--limit=2", "--after", made[1], "--json").json
    bob = gullak("customer", "list", "--email=BOB@", "--json").json

    assert first.out.splitlines()[-1] == f"there may be more: --after {made[1]}"
    assert [line.split()[:3] for line in first.out.splitlines()[1:3]] == [
        [made[2], "cid@example.com", "cid"],
        [made[1], "bob@example.com", "bob"],
    ]
    assert [customer["customer_id"] for customer in rest] == [made[0]]
    assert [customer["name"] for customer in bob] == ["bob"]


def test_a_stack_that_never_ran_has_no_variables(gullak: Gullak, tmp_path: Path) -> None:
    result = gullak("env", "--data-dir", str(tmp_path))

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"gullak: no stack runs in {tmp_path}: start one with `gullak up`")
