"""The account of `gullak demo`: each line holds when all is well, and fails when its figure is off.

The parts that it is made of too: the plan, the tally, exact fractions, the replay of alerts, the
inbox that checks signatures, kills.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from standardwebhooks import Webhook

from metering.buffer.keys import Epoch, Shard
from metering.buffer.stream import ShardCounters
from metering.errors import InvalidInputError
from metering.ids import CustomerId
from worker.demo.kills import Kill, Victim, kill, victims_of
from worker.demo.live import Display
from worker.demo.prices import Usage, plain_fraction
from worker.demo.receiver import Alert, Alerts, Inbox
from worker.demo.reconcile import (
    BalanceAfter,
    Charged,
    Payment,
    Wallet,
    alert_lines,
    alerts_due,
    event_lines,
    kill_line,
    money_lines,
    payment_lines,
    wallet_line,
)
from worker.demo.report import Line, Report
from worker.demo.scene import RuleSet, Scene
from worker.demo.shop import DECLINED, METHODS, Sold
from worker.demo.traffic import (
    CUSTOMERS,
    NOBODY,
    UNMETERED,
    Planned,
    Tally,
    plan_invented,
    plan_trace,
    read_trace,
    tally_of,
)
from worker.demo.watch import Counts, Sample

ANN = ("cus_ann", "USD")
BOB = ("cus_bob", "INR")
RULES = (RuleSet(None, "USD", 50, 80), RuleSet(CustomerId("cus_bob"), "INR", 10, 20))


def broken(lines: Iterable[Line]) -> set[str]:
    return {line.name.strip() for line in lines if not line.ok}


# --- events ---------------------------------------------------------------------------------------

REFUSED = Counter({"conflict": 1, "bad_quantity": 1})
TALLY = Tally(sent=10, posted=7, unmetered=1, repeated=1, refused=REFUSED)
COUNTS = Counts(accepted=10, posted=7, duplicate=1, refused=2, unmetered=1)
BALANCE = "in = posted + duplicate + refused + buffered"


@pytest.mark.parametrize(
    ("changes", "resent_max", "expected"),
    [
        ({}, 0, set()),
        ({"accepted": 9}, 0, {"in", BALANCE, "duplicate"}),
        ({"accepted": 11, "duplicate": 2}, 0, {"in"}),
        ({"accepted": 12, "duplicate": 3}, 2, set()),
        ({"accepted": 12, "duplicate": 3}, 1, {"in"}),
        ({"posted": 6}, 0, {"posted", BALANCE}),
        ({"posted": 6, "buffered": 1}, 0, {"posted", "buffered"}),
        ({"unmetered": 0}, 0, {"of them no meter matched"}),
        ({"duplicate": 2}, 0, {"duplicate", BALANCE}),
        ({"refused": 1}, 0, {"refused", BALANCE}),
        ({"buffered": 1}, 0, {"buffered", BALANCE}),
    ],
)
def test_events_that_ended_otherwise_are_seen(
    changes: dict[str, int], resent_max: int, expected: set[str]
) -> None:
    """What arrives twice is allowed only where answers were lost."""
    lines = event_lines(TALLY, resent_max, COUNTS._replace(**changes), REFUSED)

    assert broken(lines) == expected


def test_another_reason_of_refusal_is_seen() -> None:
    assert broken(event_lines(TALLY, 0, COUNTS, {"conflict": 2})) == {"by reason"}


# --- money ----------------------------------------------------------------------------------------

COST = {ANN: Fraction("60.25"), BOB: Fraction("5.5")}
ANNS = Wallet(*ANN, 40, Decimal("0.25"), debited_minor=60, credited_minor=100)
BOBS = Wallet(*BOB, 195, Decimal("0.5"), debited_minor=5, credited_minor=200)


def money_broken(*wallets: Wallet, cost: Mapping[tuple[str, str], Fraction] = COST) -> set[str]:
    lines = [
        *money_lines("USD", cost, 100, wallets),
        *money_lines("INR", cost, 200, wallets),
        wallet_line(cost, wallets),
    ]
    return broken(lines)


@pytest.mark.parametrize(
    ("wallets", "expected"),
    [
        ([ANNS, BOBS], set()),
        (
            [ANNS._replace(remainder=Decimal("0.250000000000000000001")), BOBS],
            {"USD exact cost = debits + remainders"},
        ),
        ([ANNS._replace(balance_minor=41), BOBS], {"USD balances = credits - debits"}),
        (
            [ANNS._replace(debited_minor=61, balance_minor=39), BOBS],
            {"USD exact cost = debits + remainders"},
        ),
        ([ANNS._replace(credited_minor=101, balance_minor=41), BOBS], {"USD credits"}),
        ([ANNS, BOBS._replace(credited_minor=199, balance_minor=194)], {"INR credits"}),
        ([ANNS], {"INR exact cost = debits + remainders", "INR credits"}),
        ([ANNS, BOBS._replace(balance_minor=0)], {"INR balances = credits - debits"}),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else None,
)
def test_wrong_money_is_seen(wallets: list[Wallet], expected: set[str]) -> None:
    found = money_broken(*wallets)

    assert found - {"wallets that are exact"} == expected
    # A wallet with more credit than was given is exact in itself: the sums show it.
    by_wallet = any(line.split()[-1] != "credits" for line in expected)
    assert ("wallets that are exact" in found) == by_wallet


def test_two_errors_that_cancel_out_are_seen_in_the_wallets() -> None:
    cat = Wallet("cus_cat", "USD", 0, Decimal("0.1"), 0, 0)
    cost = {**COST, cat.key: Fraction(0)}

    found = money_broken(ANNS._replace(remainder=Decimal("0.15")), BOBS, cat, cost=cost)

    assert found == {"wallets that are exact"}


# --- payments -------------------------------------------------------------------------------------

SOLD = Sold(payments=1, declined=1, amounts=Counter(USD=30))
PAID = Payment("pay_1", "chg_1", "succeeded", "USD", 30)
NOT_PAID = Payment("pay_2", "chg_2", "failed", "INR", 40)
CREDITED = Charged("chg_1", "USD", "order", "settled", "pay_1", is_open=False, credited_minor=[30])
DECLINED_ONE = Charged("chg_2", "INR", "order", "failed", None, is_open=False, credited_minor=[])
SETTLED, SOLD_USD, CREDITED_USD = (
    "settled, each once",
    "USD sold = charged by the gateway",
    "USD charged = credited",
)


@pytest.mark.parametrize(
    ("payments", "charged", "expected"),
    [
        ([PAID, NOT_PAID], CREDITED, set()),
        (
            [NOT_PAID],
            CREDITED,
            {"payments that the gateway made", "credited for them", SOLD_USD, CREDITED_USD},
        ),
        ([PAID], CREDITED, {"payments that it declined"}),
        (
            [PAID, NOT_PAID._replace(status="succeeded")],
            CREDITED,
            {
                "payments that the gateway made",
                "payments that it declined",
                SETTLED,
                "INR sold = charged by the gateway",
                "INR charged = credited",
            },
        ),
        (
            [PAID, PAID._replace(payment_id="pay_3"), NOT_PAID],
            CREDITED,
            {
                "payments that the gateway made",
                "payments that its webhooks told of",
                SETTLED,
                SOLD_USD,
                CREDITED_USD,
            },
        ),
        ([PAID, NOT_PAID], CREDITED._replace(credited_minor=[]), {SETTLED, CREDITED_USD}),
        ([PAID, NOT_PAID], CREDITED._replace(credited_minor=[30, 30]), {SETTLED, CREDITED_USD}),
        ([PAID, NOT_PAID], CREDITED._replace(status="pending"), {SETTLED}),
        ([PAID, NOT_PAID], CREDITED._replace(payment_id="pay_9"), {SETTLED}),
        ([PAID, NOT_PAID], CREDITED._replace(is_open=True), {SETTLED}),
        (
            [PAID, NOT_PAID],
            CREDITED._replace(charge_id="chg_9"),
            {SETTLED, "credited for them"},
        ),
        ([PAID, NOT_PAID], CREDITED._replace(origin="top_up"), {"of them automatic top-ups"}),
    ],
    ids=range(12),
)
def test_a_payment_that_was_not_settled_once_is_seen(
    payments: list[Payment], charged: Charged, expected: set[str]
) -> None:
    lines = payment_lines(SOLD, payments, [charged, DECLINED_ONE], {"pay_1", "pay_2"})

    assert broken(lines) == expected


def test_credit_for_a_declined_payment_is_seen() -> None:
    charged = [CREDITED, DECLINED_ONE._replace(credited_minor=[40])]

    lines = payment_lines(SOLD, [PAID, NOT_PAID], charged, {"pay_1", "pay_2"})

    assert broken(lines) == {"credited for them", "INR charged = credited"}


def test_a_payment_that_no_webhook_reported_is_seen() -> None:
    lines = payment_lines(SOLD, [PAID, NOT_PAID], [CREDITED, DECLINED_ONE], {"pay_1"})

    assert broken(lines) == {"payments that its webhooks told of"}


def test_among_what_is_bought_is_a_lost_answer_and_a_decline() -> None:
    buyers = [number for number in range(CUSTOMERS) if Scene.purse_of(number).topped_up]

    assert len(buyers) == len(METHODS)
    assert {"pm_hang", "pm_500", DECLINED} < {*METHODS}


# --- alerts ---------------------------------------------------------------------------------------


def history(key: tuple[str, str], *balances: int) -> list[BalanceAfter]:
    return [BalanceAfter(*key, balance) for balance in balances]


def test_alerts_come_once_per_crossing_and_again_after_recovery() -> None:
    entries = history(ANN, 100, 50, 10, 79, 40, 80, 200, 50)

    assert alerts_due(entries, RULES) == {
        ANN: {1: Alert("low", 50, 50), 2: Alert("recovered", 50, 80), 3: Alert("low", 50, 50)}
    }


def test_rules_of_a_wallet_replace_the_default_and_go_from_the_highest_down() -> None:
    own = (*RULES, *(RuleSet(CustomerId("cus_ann"), "USD", low, low + 1) for low in (5, 30)))

    assert alerts_due(history(ANN, 45, 2), own) == {
        ANN: {1: Alert("low", 30, 2), 2: Alert("low", 5, 2)}
    }


DUE: Alerts = {ANN: {1: Alert("low", 50, 40)}}
COUNT, AS_DUE = (
    "alerts due = alerts received",
    "wallets whose alerts came as due, without gaps",
)


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (DUE, set()),
        ({}, {COUNT, AS_DUE}),
        ({ANN: {2: Alert("low", 50, 40)}}, {AS_DUE}),
        ({ANN: {1: Alert("low", 50, 39)}}, {AS_DUE}),
        ({ANN: {1: Alert("recovered", 50, 40)}}, {AS_DUE}),
        ({**DUE, BOB: {1: Alert("low", 10, 9)}}, {COUNT, AS_DUE}),
    ],
    ids=range(6),
)
def test_alerts_that_were_not_due_or_did_not_come_are_seen(
    received: Alerts, expected: set[str]
) -> None:
    inbox = Inbox()
    inbox.open(SECRET)
    for key, numbered in received.items():
        for number, alert in numbered.items():
            assert inbox.take(*call(number, f"msg_{key}", key, alert)) == 204

    assert broken(alert_lines(DUE, inbox)) == expected


# --- prices and traffic ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [("0", "0"), ("12", "12"), ("-0.5", "-0.5"), ("1.0375", "1.0375"), ("0.0002875", "0.0002875")],
)
def test_fractions_are_written_in_full(value: str, text: str) -> None:
    assert plain_fraction(Fraction(value)) == text


def test_endless_decimals_are_refused() -> None:
    with pytest.raises(ValueError, match="endless"):
        plain_fraction(Fraction(1, 3))


def test_a_request_costs_what_the_price_list_says() -> None:
    usage = Usage()
    usage.add({"model": "large", "input_tokens": 1000, "output_tokens": 10})

    assert usage.cost("USD") == Fraction("0.2875") + Fraction("0.014375") + Fraction("0.0625")


def planned(event_id: str, **changes: Any) -> Planned:
    metadata: dict[str, str | int | float | bool] = {"input_tokens": 1, "output_tokens": 2}
    return Planned(event_id, 0, "llm.request", 0.0, metadata)._replace(**changes)


def test_the_tally_judges_events_by_what_they_say() -> None:
    spoilt = {"input_tokens": 1, "output_tokens": "many"}
    events = [
        planned("a"),
        planned("a"),
        planned("a", metadata={"input_tokens": 9, "output_tokens": 9}),
        planned("b", customer=NOBODY),
        planned("c", name=UNMETERED),
        planned("d", metadata=spoilt),
    ]
    tally = tally_of(events)

    assert (tally.sent, tally.posted, tally.unmetered, tally.repeated) == (6, 2, 1, 1)
    assert tally.refused == {"conflict": 1, "unknown_customer": 1, "bad_quantity": 1}
    assert tally.usage[0].units["output tokens"] == 2


def test_invented_traffic_has_the_asked_number_and_some_of_each_kind() -> None:
    plan = plan_invented(3000, 10.0)
    tally = tally_of(plan)

    assert len(plan) == 3000
    assert tally.repeated == 75
    assert tally.unmetered == 30
    assert tally.refused == {"unknown_customer": 7, "bad_quantity": 7, "conflict": 3}
    assert plan == plan_invented(3000, 10.0)


@pytest.mark.parametrize("events", [1, 2, 39, 41])
def test_little_traffic_is_traffic_too(events: int) -> None:
    assert len(plan_invented(events, 1.0)) == events


def test_a_trace_keeps_its_figures_and_its_spacing(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,3180,8\n"
    )
    plan = plan_trace(read_trace(file), 3)

    assert [event.event_id for event in plan] == ["row-0", "row-1", "row-2"]
    assert [event.customer for event in plan] == [n % CUSTOMERS for n in range(3)]
    assert [event.at_s for event in plan] == [-0.052, 0.0, -0.052]
    assert plan[2].metadata == {"input_tokens": 4808, "output_tokens": 10}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A,B\n1,2\n", "has not the columns"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no rows"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,x,1\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03\n", "line 2"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)

    with pytest.raises(InvalidInputError, match=reason):
        read_trace(file)


# --- receiver -------------------------------------------------------------------------------------

SECRET = "whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="  # 32 digits


def call(
    sequence: int,
    webhook_id: str,
    key: tuple[str, str] = ANN,
    alert: Alert = DUE[ANN][1],
) -> tuple[dict[str, str], bytes]:
    data = {"customer_id": key[0], "currency": key[1], "sequence": sequence}
    data |= {"threshold_amount": alert.threshold_minor, "available_balance": alert.balance_minor}
    body = json.dumps({"type": f"credit.balance_{alert.kind}", "data": data})
    return signed(webhook_id, body)


def signed(webhook_id: str, body: str) -> tuple[dict[str, str], bytes]:
    now = datetime.now(UTC)
    headers = {
        "Webhook-Id": webhook_id,
        "Webhook-Timestamp": str(int(now.timestamp())),
        "Webhook-Signature": Webhook(SECRET).sign(webhook_id, now, body),
    }
    return headers, body.encode()


@pytest.fixture
def inbox() -> Inbox:
    inbox = Inbox()
    inbox.open(SECRET)
    return inbox


def test_without_its_secret_an_inbox_asks_for_another_try() -> None:
    assert Inbox().take(*call(1, "msg_1")) == 503


def test_a_signed_webhook_is_counted_once(inbox: Inbox) -> None:
    statuses = [inbox.take(*call(1, "msg_1")), inbox.take(*call(1, "msg_1"))]

    assert statuses == [204, 204]
    assert inbox.alerts() == DUE
    assert (inbox.count, inbox.repeated) == (1, 1)
    assert broken(alert_lines(DUE, inbox)) == set()


def test_an_edited_webhook_is_refused_and_seen(inbox: Inbox) -> None:
    headers, body = call(1, "msg_1")

    assert inbox.take(headers, body.replace(b"40", b"41")) == 401
    assert inbox.take({}, body) == 401
    assert (inbox.alerts(), inbox.count) == ({}, 0)
    assert broken(alert_lines({}, inbox)) == {"webhooks with a bad signature"}


def test_webhooks_that_make_no_sense_are_seen(inbox: Inbox) -> None:
    """One number in two webhooks, and one without any."""
    inbox.take(*call(1, "msg_1"))
    inbox.take(*call(1, "msg_2"))
    assert inbox.malformed == 1

    assert inbox.take(*signed("msg_3", '{"type": "credit.balance_low", "data": {}}')) == 400
    assert inbox.malformed == 2
    assert "webhooks that make no sense" in broken(alert_lines(DUE, inbox))


# --- kills ----------------------------------------------------------------------------------------


def sample(*shards: tuple[int, int], away: tuple[str, ...] = ()) -> Sample:
    """A look at shards that have accepted and settled so many events."""
    counters = {Shard(n): ShardCounters(Epoch("e"), *each) for n, each in enumerate(shards)}
    return Sample(shards=counters, away=away)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Kill:
    pids: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, _signal: pids.append(pid))
    killed = kill(Victim.WORKER, 1, 30)
    assert pids == [1]
    return killed


def test_a_killed_process_is_back_when_another_is_ready_and_both_stores_answer(
    killed: Kill,
) -> None:
    now = sample((30, 10))

    assert not killed.is_back(1, [], now)  # the old process
    assert not killed.is_back(None, [], now)
    assert not killed.is_back(3, ["worker"], now)
    assert not killed.is_back(3, [], sample((30, 10), away=("redis",)))  # the figures are old
    assert killed.back_s is None
    assert killed.is_back(3, ["beat"], now)
    assert killed.back_s is not None


def test_a_kill_is_over_when_each_shard_has_drained_what_it_held(killed: Kill) -> None:
    assert not killed.is_drained(sample((60, 60), (20, 20)))  # the process is not back
    assert killed.is_back(3, [], sample((60, 40), (20, 20)))

    assert not killed.is_drained(sample((60, 59), (20, 20)))
    assert not killed.is_drained(sample((60, 59), (40, 40)))  # later events of another shard
    assert not killed.is_drained(sample((60, 60), (40, 40), away=("postgres",)))
    assert not killed.recovered
    assert killed.is_drained(sample((70, 60), (40, 40)))
    assert killed.recovered


@pytest.mark.parametrize(
    ("drained_s", "holds"), [(None, False), (30.1, False), (30.0, True), (3.0, True)]
)
def test_a_kill_must_be_over_in_time(drained_s: float | None, *, holds: bool) -> None:
    late = Kill("beat", 1, 5, back_s=2.0, drained_s=drained_s)

    assert kill_line(late).ok is holds
    assert late.as_json()["recovered"] is holds


def test_all_stands_for_every_role() -> None:
    every = [Victim.WORKER, Victim.BEAT, Victim.REDIS, Victim.POSTGRES]

    assert victims_of([Victim.ALL]) == every
    assert victims_of([Victim.BEAT, Victim.BEAT]) == [Victim.BEAT, Victim.BEAT]


# --- the report -----------------------------------------------------------------------------------


def test_table_and_json_show_the_same_lines() -> None:
    faults = "faults found by verify"
    report = Report(
        lines=[Line("in", 1000, 999, ok=False), Line(faults, "none", "none", ok=True)],
        kills=[Kill("beat", 1, 5, back_s=2.0, drained_s=3.0)],
        events=1000,
        over_http=500,
        traffic_s=10.0,
        duration_s=20.0,
        trace=None,
        customers=[ANN],
    )
    console = Console(record=True, width=100, file=StringIO())
    report.print_to(console)
    printed = console.export_text().splitlines()

    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed if "│" in line]
    assert rows == [["in", "1,000", "999", "NO"], [faults, "none", "none", "yes"]]
    assert "killed: beat back after 2.0 s, drained after 3.0 s" in printed
    assert "1 lines do NOT hold" in printed
    found = report.as_json()
    assert json.loads(json.dumps(found)) == found
    assert found["ok"] is False
    assert found["lines"][0] == {"name": "in", "expected": 1000, "found": 999, "ok": False}
    assert found["events_per_s"] == 100.0
    assert found["customers"] == [{"customer_id": "cus_ann", "currency": "USD"}]


@pytest.mark.parametrize("on_terminal", [True, False], ids=["terminal", "file"])
def test_figures_are_shown_on_a_terminal_and_in_a_file(*, on_terminal: bool) -> None:
    console = Console(width=150, file=StringIO(), force_terminal=on_terminal)
    customers = [CustomerId(f"cus_{number}") for number in range(CUSTOMERS)]
    now = replace(sample((1500, 1400)), balances={customers[1]: -1234}, away=("postgres",))

    with Display(console) as display:
        display.sent = lambda: 2000
        display.tell("the stack is ready")
        display.update(now, customers)

    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert all(
        text in shown for text in ("the stack is ready", "2,000", "1,500", "100", "postgres")
    )
    assert ("-12.34" in shown) == on_terminal
