"""The account of `gullak demo`: each line holds when all is well, and fails when its figure is off.

The parts that it is made of too: the plan, the tally, exact fractions, the replay of alerts, the
inbox that checks signatures, the killer.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from metering.errors import InvalidInputError
from metering.ids import CustomerId
from worker.demo.kills import Kill, Killer, Victim, victims_of
from worker.demo.prices import Usage, plain_fraction
from worker.demo.producers import Pace
from worker.demo.receiver import Alert, Inbox, Received
from worker.demo.reconcile import (
    Charged,
    EntryState,
    Expected,
    Found,
    Payment,
    WalletState,
    alerts_due,
    reconcile,
)
from worker.demo.scene import RuleSet, Scene
from worker.demo.shop import DECLINED, METHODS
from worker.demo.traffic import (
    CUSTOMERS,
    NOBODY,
    UNMETERED,
    Planned,
    plan_invented,
    plan_trace,
    read_trace,
    tally_of,
)
from worker.demo.watch import Counts, Sample

ANN = ("cus_ann", "USD")
BOB = ("cus_bob", "INR")
RULES = (RuleSet(None, "USD", 50, 80), RuleSet(CustomerId("cus_bob"), "INR", 10, 20))


def entry(key: tuple[str, str], amount: int, after: int, *, usage: bool = True) -> EntryState:
    return EntryState(
        key=key, is_usage=usage, is_credit=not usage, amount_minor=amount, after_minor=after
    )


EXPECTED = Expected(
    sent=10,
    posted=7,
    unmetered=1,
    repeated=1,
    refused={"conflict": 1, "bad_quantity": 1},
    resent_max=0,
    cost={ANN: Fraction("60.25"), BOB: Fraction("5.5")},
    credited={"USD": 70, "INR": 200},
    rules=RULES,
    payments=1,
    declined=1,
    top_ups=0,
    sold={"USD": 30},
)
PAID = Payment(
    payment_id="pay_1", charge_id="chg_1", status="succeeded", currency="USD", amount_minor=30
)
NOT_PAID = Payment(
    payment_id="pay_2", charge_id="chg_2", status="failed", currency="INR", amount_minor=40
)
CREDITED = Charged(
    charge_id="chg_1",
    currency="USD",
    origin="order",
    status="settled",
    payment_id="pay_1",
    is_open=False,
    credited_minor=[30],
)
REFUSED = Charged(
    charge_id="chg_2",
    currency="INR",
    origin="order",
    status="failed",
    payment_id=None,
    is_open=False,
    credited_minor=[],
)
FOUND = Found(
    counts=Counts(accepted=10, posted=7, duplicate=1, refused=2, unmetered=1),
    cursors_settled=10,
    lost=0,
    refused={"bad_quantity": 1, "conflict": 1},
    wallets=[
        WalletState(key=ANN, balance_minor=40, remainder=Decimal("0.25")),
        WalletState(key=BOB, balance_minor=195, remainder=Decimal("0.5")),
    ],
    entries=[
        entry(ANN, 70, 70, usage=False),
        entry(ANN, 30, 100, usage=False),
        entry(ANN, 60, 40),
        entry(BOB, 200, 200, usage=False),
        entry(BOB, 5, 195),
    ],
    received=Received({ANN: {1: Alert("low", 50, 40)}}, 1, 0, 0, 0),
    uncredited=0,
    payments=[PAID, NOT_PAID],
    charged=[CREDITED, REFUSED],
    told={"pay_1", "pay_2"},
    faults=(),
    kills=[Kill("worker", 1, 0.0, 5, back_s=2.0, drained_s=3.0)],
)


def broken(expected: Expected, found: Found) -> list[str]:
    return [line.name.strip() for line in reconcile(expected, found) if not line.holds]


def counted(**changes: int) -> Found:
    return replace(FOUND, counts=replace(FOUND.counts, **changes))


def with_ann(**changes: object) -> Found:
    ann, bob = FOUND.wallets
    return replace(FOUND, wallets=[replace(ann, **changes), bob])  # type: ignore[arg-type]


def received(alerts: Mapping[tuple[str, str], dict[int, Alert]], **changes: int) -> Found:
    values = {"webhook_ids": 1, "repeated": 0, "bad_signatures": 0, "malformed": 0, **changes}
    return replace(FOUND, received=Received(dict(alerts), **values))


def charged(**changes: object) -> Found:
    """The purchase that was paid, otherwise."""
    return replace(FOUND, charged=[replace(CREDITED, **changes), REFUSED])  # type: ignore[arg-type]


def paid(*payments: Payment) -> Found:
    return replace(FOUND, payments=payments)


def test_every_line_holds_when_all_is_well() -> None:
    assert broken(EXPECTED, FOUND) == []


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (counted(accepted=9), "in"),
        (counted(accepted=11), "in"),
        (counted(posted=6), "posted"),
        (counted(posted=6), "in = posted + duplicate + refused + buffered"),
        (counted(unmetered=0), "of them no meter matched"),
        (counted(duplicate=2), "duplicate"),
        (counted(refused=1), "refused"),
        (counted(buffered=1), "buffered"),
        (replace(FOUND, refused={"conflict": 2}), "by reason"),
        (replace(FOUND, cursors_settled=9), "settled by the cursors"),
        (replace(FOUND, lost=1), "lost"),
        (with_ann(remainder=Decimal("0.250000000000000000001")), "wallets that are exact"),
        (
            with_ann(remainder=Decimal("0.250000000000000000001")),
            "USD exact cost = debits + remainders",
        ),
        (with_ann(balance_minor=41), "USD balances = credits - debits"),
        (with_ann(balance_minor=41), "wallets that are exact"),
        (replace(FOUND, wallets=FOUND.wallets[:1]), "INR exact cost = debits + remainders"),
        (replace(FOUND, wallets=FOUND.wallets[:1]), "wallets that are exact"),
        (replace(FOUND, entries=FOUND.entries[1:]), "USD credits"),
        (replace(FOUND, entries=FOUND.entries[:-1]), "INR exact cost = debits + remainders"),
        (received({}, webhook_ids=0), "alerts due = alerts received"),
        (received({}, webhook_ids=0), "wallets whose alerts came as due, without gaps"),
        (
            received({ANN: {2: Alert("low", 50, 40)}}),
            "wallets whose alerts came as due, without gaps",
        ),
        (
            received({ANN: {1: Alert("low", 50, 39)}}),
            "wallets whose alerts came as due, without gaps",
        ),
        (
            received({**FOUND.received.alerts, BOB: {1: Alert("low", 10, 9)}}),
            "wallets with alerts that were not due",
        ),
        (received(FOUND.received.alerts, webhook_ids=2), "distinct webhook ids"),
        (received(FOUND.received.alerts, bad_signatures=1), "webhooks with a bad signature"),
        (received(FOUND.received.alerts, malformed=1), "webhooks that make no sense"),
        (replace(FOUND, uncredited=1), "paid orders without credit"),
        (paid(NOT_PAID), "payments that the gateway made"),
        (paid(NOT_PAID), "USD sold = charged by the gateway"),
        (paid(NOT_PAID), "USD charged = credited"),
        (paid(PAID), "payments that it declined"),
        (paid(PAID, replace(NOT_PAID, status="succeeded")), "INR sold = charged by the gateway"),
        (paid(PAID, replace(NOT_PAID, status="succeeded")), "INR charged = credited"),
        (charged(credited_minor=[]), "settled, each once"),
        (charged(status="pending"), "settled, each once"),
        (charged(payment_id="pay_9"), "settled, each once"),
        (charged(is_open=True), "settled, each once"),
        (replace(FOUND, charged=[REFUSED]), "settled, each once"),
        (charged(origin="top_up"), "of them automatic top-ups"),
        (
            replace(FOUND, charged=[CREDITED, replace(REFUSED, credited_minor=[40])]),
            "credited for them",
        ),
        (replace(FOUND, told={"pay_1"}), "payments that its webhooks told of"),
        (replace(FOUND, faults=["entries are without gaps: 2"]), "faults found by verify"),
        (
            replace(FOUND, kills=[Kill("beat", 1, 0.0, 5, back_s=2.0)]),
            "recovered from the kill of beat",
        ),
        (
            replace(FOUND, kills=[Kill("beat", 1, 0.0, 5, back_s=2.0, drained_s=30.1)]),
            "recovered from the kill of beat",
        ),
    ],
)
def test_a_wrong_figure_makes_its_line_fail(found: Found, line: str) -> None:
    assert line in broken(EXPECTED, found)


def test_each_line_can_fail() -> None:
    """No line but those that the cases above break: a new line needs a case of its own."""
    cases = test_a_wrong_figure_makes_its_line_fail.pytestmark[0].args[1]  # type: ignore[attr-defined]
    breakable = {line for _, line in cases} | {"recovered from the kill of worker"}
    unproven = {line.name.strip() for line in reconcile(EXPECTED, FOUND)} - breakable

    # The same code as the USD line, which is among the cases.
    assert unproven == {"INR credits", "INR balances = credits - debits"}


def test_a_payment_without_its_credit_is_found() -> None:
    entries = [each for each in FOUND.entries if each.after_minor != 100]
    missing = replace(charged(credited_minor=[]), entries=entries)

    assert {"settled, each once", "USD charged = credited", "USD credits"} <= {
        *broken(EXPECTED, missing)
    }


def test_a_payment_that_was_credited_twice_is_found() -> None:
    entries = [*FOUND.entries, entry(ANN, 30, 70, usage=False)]
    doubled = replace(charged(credited_minor=[30, 30]), entries=entries)

    assert {"settled, each once", "USD charged = credited", "USD credits"} <= {
        *broken(EXPECTED, doubled)
    }


def test_a_purchase_that_was_charged_twice_is_found() -> None:
    twice = paid(PAID, replace(PAID, payment_id="pay_3"), NOT_PAID)

    assert {
        "payments that the gateway made",
        "settled, each once",
        "USD sold = charged by the gateway",
        "USD charged = credited",
    } <= {*broken(EXPECTED, twice)}


def test_among_what_is_bought_is_a_lost_answer_and_a_decline() -> None:
    buyers = [number for number in range(CUSTOMERS) if Scene.purse_of(number).topped_up]

    assert len(buyers) == len(METHODS)
    assert {"pm_hang", "pm_500", DECLINED} < {*METHODS}


def test_two_errors_that_cancel_out_are_seen_in_the_wallets() -> None:
    cat = ("cus_cat", "USD")
    expected = replace(EXPECTED, cost={**EXPECTED.cost, cat: Fraction(0)})
    ann, bob = FOUND.wallets
    moved = [replace(ann, remainder=Decimal("0.15")), bob]
    moved.append(WalletState(key=cat, balance_minor=0, remainder=Decimal("0.1")))

    assert broken(expected, replace(FOUND, wallets=moved)) == ["wallets that are exact"]


def test_what_arrives_twice_is_allowed_only_where_answers_were_lost() -> None:
    twice = counted(accepted=12, duplicate=3)
    twice = replace(twice, cursors_settled=12)

    assert broken(replace(EXPECTED, resent_max=2), twice) == []
    assert broken(replace(EXPECTED, resent_max=1), twice) == ["in"]


# --- alerts ---------------------------------------------------------------------------------------


def test_alerts_come_once_per_crossing_and_again_after_recovery() -> None:
    balances = (100, 50, 10, 79, 40, 80, 200, 50)
    history = [entry(ANN, 1, balance) for balance in balances]

    assert alerts_due(history, RULES) == {
        ANN: [Alert("low", 50, 50), Alert("recovered", 50, 80), Alert("low", 50, 50)]
    }


def test_rules_of_a_wallet_replace_the_default_and_go_from_the_highest_down() -> None:
    own = (*RULES, *(RuleSet(CustomerId("cus_ann"), "USD", low, low + 1) for low in (5, 30)))

    assert alerts_due([entry(ANN, 1, 45), entry(ANN, 1, 2)], own) == {
        ANN: [Alert("low", 30, 2), Alert("low", 5, 2)]
    }


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


def call(sequence: int, webhook_id: str) -> tuple[dict[str, str], bytes]:
    data = {"customer_id": "cus_ann", "currency": "USD", "sequence": sequence}
    data |= {"threshold_amount": 50, "available_balance": 40}
    body = json.dumps({"type": "credit.balance_low", "data": data})
    now = datetime.now(UTC)
    headers = {
        "Webhook-Id": webhook_id,
        "Webhook-Timestamp": str(int(now.timestamp())),
        "Webhook-Signature": Webhook(SECRET).sign(webhook_id, now, body),
    }
    return headers, body.encode()


def test_a_signed_webhook_is_counted_once() -> None:
    inbox = Inbox(SECRET)
    statuses = [inbox.take(*call(1, "msg_1")), inbox.take(*call(1, "msg_1"))]

    assert statuses == [204, 204]
    assert inbox.received() == Received({ANN: {1: Alert("low", 50, 40)}}, 1, 1, 0, 0)


def test_an_edited_webhook_is_refused_and_counted() -> None:
    inbox = Inbox(SECRET)
    headers, body = call(1, "msg_1")

    assert inbox.take(headers, body.replace(b"40", b"41")) == 401
    assert inbox.take({}, body) == 401
    assert inbox.received() == Received({}, 0, 0, 2, 0)


def test_one_number_in_two_webhooks_makes_no_sense() -> None:
    inbox = Inbox(SECRET)
    inbox.take(*call(1, "msg_1"))
    inbox.take(*call(1, "msg_2"))

    assert inbox.received().malformed == 1


# --- killer ---------------------------------------------------------------------------------------


class Processes:
    """A stack whose processes are only numbers."""

    api_url = ""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {"worker": 1, "beat": 2}
        self.not_ready: list[str] = []

    def missing(self) -> list[str]:
        return self.not_ready


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    pids: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, _signal: pids.append(pid))
    return pids


def sample(accepted: int, settled: int) -> Sample:
    return Sample(counts=Counts(accepted=accepted, posted=settled))


def test_a_kill_is_over_when_the_process_is_back_and_all_is_drained(killed: list[int]) -> None:
    stack, pace = Processes(), Pace(90, 1.0)
    killer = Killer(stack, pace, [Victim.WORKER, Victim.BEAT], 90, lambda _news: None)
    assert pace.limit == 30

    killer.tick(29, sample(0, 0))
    assert killed == []
    killer.tick(30, sample(30, 10))
    assert (killed, pace.limit) == ([1], 60)
    killer.tick(60, sample(60, 60))  # the old process: not back
    stack.pids["worker"], stack.not_ready = 3, ["worker"]
    killer.tick(60, sample(60, 60))  # the new one is not ready
    assert killer.kills[0].back_s is None
    stack.not_ready = []
    killer.tick(60, sample(60, 40))
    killer.tick(60, sample(60, 59))
    assert (killer.kills[0].drained_s, killed) == (None, [1])
    killer.tick(60, sample(60, 60))
    assert killer.kills[0].recovered
    assert not killer.is_done
    killer.tick(60, sample(60, 60))
    assert (killed, pace.limit) == ([1, 2], 90)


def test_all_stands_for_every_role() -> None:
    every = [Victim.WORKER, Victim.BEAT, Victim.REDIS, Victim.POSTGRES]

    assert victims_of([Victim.ALL]) == every
    assert victims_of([Victim.BEAT, Victim.BEAT]) == [Victim.BEAT, Victim.BEAT]
