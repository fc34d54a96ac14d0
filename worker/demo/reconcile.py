"""The account at the end: what the producer knows against what the stores say, line by line."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from worker.demo.kills import RECOVER_WITHIN_S, Kill
from worker.demo.prices import CURRENCIES, plain_fraction
from worker.demo.receiver import Alert, Received, WalletKey
from worker.demo.scene import RuleSet
from worker.demo.watch import Counts


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table; it holds or it does not."""

    name: str
    expected: str
    actual: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the producer knows. `cost`, `credited` and `sold` in minor units.

    `resent_max`: events that may have arrived twice, because an answer of Redis was lost.
    `cost` is by customer and currency. `credited`: without what is paid through the gateway, where
    `payments` are to succeed, for `sold`, `top_ups` of them by themselves, and others are declined.
    """

    sent: int
    posted: int
    unmetered: int
    repeated: int
    refused: Mapping[str, int]
    resent_max: int
    cost: Mapping[WalletKey, Fraction]
    credited: Mapping[str, int]
    rules: Sequence[RuleSet]
    payments: int
    declined: int
    top_ups: int
    sold: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A payment in the gateway's own list; `charge_id`: what it was asked for as."""

    payment_id: str
    charge_id: str
    status: Literal["pending", "succeeded", "failed"]
    currency: str
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """A purchase that the gateway was asked to charge, and every entry that credits it.

    `is_open`: the worker has not heard how it ended. `payment_id`: what settled it.
    """

    charge_id: str
    currency: str
    origin: str
    status: str
    payment_id: str | None
    is_open: bool
    credited_minor: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletState:
    """Where a wallet stands."""

    key: WalletKey
    balance_minor: int
    remainder: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryState:
    """One entry of a wallet's history; `is_usage`: made by the drain."""

    key: WalletKey
    is_usage: bool
    is_credit: bool
    amount_minor: int
    after_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the stores, the receiver, the verifier and the gateway say.

    Entries are in the order of the histories. `payments`: the gateway's own list; `told`: those of
    them that its webhooks have told of.
    """

    counts: Counts
    cursors_settled: int
    lost: int
    refused: Mapping[str, int]
    wallets: Sequence[WalletState]
    entries: Sequence[EntryState]
    received: Received
    uncredited: int
    payments: Sequence[Payment]
    charged: Sequence[Charged]
    told: Collection[str]
    faults: Sequence[str]
    kills: Sequence[Kill]


def reconcile(expected: Expected, found: Found) -> list[Line]:
    """Return every line of the account."""
    return [
        *_event_lines(expected, found),
        *(line for code in CURRENCIES for line in _money_lines(code, expected, found)),
        _wallet_line(expected, found),
        *_alert_lines(expected, found),
        _equal("webhooks with a bad signature", 0, found.received.bad_signatures),
        _equal("paid orders without credit", 0, found.uncredited),
        *_payment_lines(expected, found),
        _line("faults found by verify", "none", "; ".join(found.faults) or "none"),
        *(_kill_line(kill) for kill in found.kills),
    ]


def _line(name: str, expected: str, actual: str) -> Line:
    return Line(name, expected, actual, expected == actual)


def _equal(name: str, expected: int, actual: int) -> Line:
    return Line(name, f"{expected:,}", f"{actual:,}", expected == actual)


# --- events -----------------------------------------------------------------------------------


def _event_lines(expected: Expected, found: Found) -> list[Line]:
    counts = found.counts
    arrived_twice = counts.accepted - expected.sent
    ended = counts.posted + counts.duplicate + counts.refused + counts.buffered
    return [
        _in_line(expected, arrived_twice, counts.accepted),
        _equal("in = posted + duplicate + refused + buffered", counts.accepted, ended),
        _equal("posted", expected.posted, counts.posted),
        _equal("  of them no meter matched", expected.unmetered, counts.unmetered),
        _equal("duplicate", expected.repeated + arrived_twice, counts.duplicate),
        _equal("refused", sum(expected.refused.values()), counts.refused),
        _line("  by reason", _reasons(expected.refused), _reasons(found.refused)),
        _equal("buffered", 0, counts.buffered),
        _equal("settled by the cursors", counts.accepted, found.cursors_settled),
        _equal("lost", 0, found.lost),
    ]


def _in_line(expected: Expected, arrived_twice: int, accepted: int) -> Line:
    """Everything sent is in; more only where a lost answer made a producer send again."""
    text = f"{expected.sent:,}"
    if expected.resent_max:
        text += f" and up to {expected.resent_max:,} sent again"
    return Line("in", text, f"{accepted:,}", 0 <= arrived_twice <= expected.resent_max)


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts.items()) if n) or "none"


# --- money ------------------------------------------------------------------------------------


def charged(code: str, found: Found) -> tuple[int, Fraction]:
    """Return the sum of the usage debits in a currency, and of its wallets' remainders."""
    debits = sum(e.amount_minor for e in found.entries if e.key[1] == code and e.is_usage)
    remainders = (Fraction(w.remainder) for w in found.wallets if w.key[1] == code)
    return debits, sum(remainders, Fraction(0))


def exact_cost(code: str, expected: Expected) -> Fraction:
    """Return what the traffic must cost in a currency, in minor units."""
    return sum((cost for key, cost in expected.cost.items() if key[1] == code), Fraction(0))


def _money_lines(code: str, expected: Expected, found: Found) -> list[Line]:
    debits, remainders = charged(code, found)
    cost = exact_cost(code, expected)
    entries = [entry for entry in found.entries if entry.key[1] == code]
    given = sum(entry.amount_minor for entry in entries if entry.is_credit)
    due = expected.credited.get(code, 0) + paid_through_gateway(code, found)
    taken = sum(entry.amount_minor for entry in entries if not entry.is_credit)
    balance = sum(wallet.balance_minor for wallet in found.wallets if wallet.key[1] == code)
    return [
        Line(
            f"{code} exact cost = debits + remainders",
            plain_fraction(cost),
            plain_fraction(debits + remainders),
            cost == debits + remainders,
        ),
        _equal(f"{code} credits", due, given),
        _equal(f"{code} balances = credits - debits", given - taken, balance),
    ]


def _wallet_line(expected: Expected, found: Found) -> Line:
    """Each wallet by itself: an error in one could hide behind an error in another."""
    debits: Counter[WalletKey] = Counter()
    sums: Counter[WalletKey] = Counter()
    for entry in found.entries:
        sums[entry.key] += entry.amount_minor if entry.is_credit else -entry.amount_minor
        debits[entry.key] += entry.amount_minor if entry.is_usage else 0
    exact = sum(
        debits[wallet.key] + Fraction(wallet.remainder) == expected.cost.get(wallet.key, 0)
        and wallet.balance_minor == sums[wallet.key]
        for wallet in found.wallets
    )
    wallets = len({*expected.cost, *(wallet.key for wallet in found.wallets)})
    return _equal("wallets that are exact", wallets, exact)


# --- payments ---------------------------------------------------------------------------------


def paid_through_gateway(code: str, found: Found) -> int:
    """Return what the gateway has charged in a currency by its own list, in minor units."""
    return sum(
        payment.amount_minor
        for payment in found.payments
        if payment.currency == code and payment.status == "succeeded"
    )


def credited_for_payments(code: str, found: Found) -> int:
    """Return what the ledger has credited in a currency for purchases that were charged."""
    return sum(sum(each.credited_minor) for each in found.charged if each.currency == code)


def settled_once(found: Found) -> int:
    """Return how many payments have settled one purchase each, by one entry of their amount."""
    by_charge = {each.charge_id: each for each in found.charged}
    return sum(
        payment.status == "succeeded" and _settles(payment, by_charge.get(payment.charge_id))
        for payment in found.payments
    )


def _settles(payment: Payment, charged: Charged | None) -> bool:
    return (
        charged is not None
        and not charged.is_open
        and (charged.status, charged.payment_id) == ("settled", payment.payment_id)
        and list(charged.credited_minor) == [payment.amount_minor]
    )


def _payment_lines(expected: Expected, found: Found) -> list[Line]:
    """Judge the ledger by what the gateway says that it did, whatever the books say of it."""
    made = {p.charge_id for p in found.payments if p.status == "succeeded"}
    succeeded = sum(payment.status == "succeeded" for payment in found.payments)
    told = sum(payment.payment_id in found.told for payment in found.payments)
    unpaid = sum(sum(c.credited_minor) for c in found.charged if c.charge_id not in made)
    top_ups = sum(each.origin == "top_up" and bool(each.credited_minor) for each in found.charged)
    return [
        _equal("payments that the gateway made", expected.payments, succeeded),
        _equal("  settled, each once", succeeded, settled_once(found)),
        _equal("  of them automatic top-ups", expected.top_ups, top_ups),
        _equal("payments that it declined", expected.declined, len(found.payments) - succeeded),
        _equal("  credited for them", 0, unpaid),
        _equal("payments that its webhooks told of", len(found.payments), told),
        *(line for code in CURRENCIES for line in _sum_lines(code, expected, found)),
    ]


def _sum_lines(code: str, expected: Expected, found: Found) -> list[Line]:
    paid = paid_through_gateway(code, found)
    return [
        _equal(f"{code} sold = charged by the gateway", expected.sold.get(code, 0), paid),
        _equal(f"{code} charged = credited", paid, credited_for_payments(code, found)),
    ]


# --- alerts -----------------------------------------------------------------------------------


def alerts_due(
    entries: Iterable[EntryState], rules: Sequence[RuleSet]
) -> dict[WalletKey, list[Alert]]:
    """Replay the histories against the rules; return the alerts of each wallet, in their order.

    A rule tells once when a balance falls to its threshold, and once when it is back. A wallet's
    own rules replace the default of its currency.
    """
    due: dict[WalletKey, list[Alert]] = defaultdict(list)
    low: set[tuple[WalletKey, RuleSet]] = set()
    for entry in entries:
        for rule in _rules_of(entry.key, rules):
            state = (entry.key, rule)
            if state not in low and entry.after_minor <= rule.threshold_minor:
                low.add(state)
                due[entry.key].append(Alert("low", rule.threshold_minor, entry.after_minor))
            elif state in low and entry.after_minor >= rule.recover_at_minor:
                low.remove(state)
                due[entry.key].append(Alert("recovered", rule.threshold_minor, entry.after_minor))
    return dict(due)


def _rules_of(key: WalletKey, rules: Sequence[RuleSet]) -> list[RuleSet]:
    customer_id, currency = key
    of_currency = [rule for rule in rules if rule.currency == currency]
    own = [rule for rule in of_currency if rule.customer_id == customer_id]
    chosen = own or [rule for rule in of_currency if rule.customer_id is None]
    return sorted(chosen, key=lambda rule: -rule.threshold_minor)


def _alert_lines(expected: Expected, found: Found) -> list[Line]:
    due = alerts_due(found.entries, expected.rules)
    received = found.received
    as_due = sum(
        list(enumerate(alerts, start=1)) == sorted(received.alerts.get(key, {}).items())
        for key, alerts in due.items()
    )
    unasked = len({key for key, alerts in received.alerts.items() if alerts} - due.keys())
    count = sum(map(len, due.values()))
    return [
        _equal("alerts due = alerts received", count, received.count),
        _equal("distinct webhook ids", count, received.webhook_ids),
        _equal("wallets whose alerts came as due, without gaps", len(due), as_due),
        _equal("wallets with alerts that were not due", 0, unasked),
        _equal("webhooks that make no sense", 0, received.malformed),
    ]


def _kill_line(kill: Kill) -> Line:
    took = "not at all" if kill.drained_s is None else f"{kill.drained_s:.1f} s"
    limit = f"within {RECOVER_WITHIN_S:.0f} s"
    return Line(f"recovered from the kill of {kill.role}", limit, took, kill.recovered)
