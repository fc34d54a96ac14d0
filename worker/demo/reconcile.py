"""The account at the end: what the producers know against what the stores say, line by line."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Literal, NamedTuple

from worker.demo.kills import RECOVER_WITHIN_S, Kill
from worker.demo.prices import CURRENCIES
from worker.demo.receiver import Alert, Alerts, Inbox, WalletKey
from worker.demo.report import Line, line
from worker.demo.scene import RuleSet
from worker.demo.shop import Sold
from worker.demo.traffic import Tally
from worker.demo.watch import Counts


class Wallet(NamedTuple):
    """A wallet with the sums of its usage debits and of its credits, in minor units."""

    customer_id: str
    currency: str
    balance_minor: int
    remainder: Decimal
    debited_minor: int
    credited_minor: int

    @property
    def key(self) -> WalletKey:
        """The customer and the currency."""
        return self.customer_id, self.currency

    @property
    def charged(self) -> Fraction:
        """What usage has cost this wallet, exactly."""
        return self.debited_minor + Fraction(self.remainder)


class BalanceAfter(NamedTuple):
    """The balance of a wallet after one of its entries."""

    customer_id: str
    currency: str
    after_minor: int


class Payment(NamedTuple):
    """A payment in the list of the provider; `charge_id`: the charge that asked for it."""

    payment_id: str
    charge_id: str
    status: Literal["pending", "succeeded", "failed"]
    currency: str
    amount_minor: int


class Charged(NamedTuple):
    """A charge, its purchase, and every entry that credits it.

    `is_open`: the outcome is not known yet. `payment_id`: the payment that settled the purchase.
    """

    charge_id: str
    currency: str
    origin: str
    status: str
    payment_id: str | None
    is_open: bool
    credited_minor: Sequence[int]


# --- events -----------------------------------------------------------------------------------


def event_lines(
    tally: Tally, resent_max: int, counts: Counts, refused: Mapping[str, int]
) -> list[Line]:
    """Compare the events. An answer that was lost lets a producer send some again."""
    twice = counts.accepted - tally.sent
    sent = f"{tally.sent:,} and up to {resent_max:,} sent again" if resent_max else tally.sent
    ends = counts.ended + counts.buffered
    return [
        Line("in", sent, counts.accepted, ok=0 <= twice <= resent_max),
        line("in = posted + duplicate + refused + buffered", counts.accepted, ends),
        line("posted", tally.posted, counts.posted),
        line("  of them no meter matched", tally.unmetered, counts.unmetered),
        line("duplicate", tally.repeated + twice, counts.duplicate),
        line("refused", tally.refused.total(), counts.refused),
        line("  by reason", _reasons(tally.refused), _reasons(refused)),
        line("buffered", 0, counts.buffered),
    ]


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts.items()) if n) or "none"


# --- money ------------------------------------------------------------------------------------


def money_lines(
    code: str, cost: Mapping[WalletKey, Fraction], credited: int, wallets: Sequence[Wallet]
) -> list[Line]:
    """Compare the sums of a currency."""
    ours = [wallet for wallet in wallets if wallet.currency == code]
    exact = sum((each for key, each in cost.items() if key[1] == code), Fraction(0))
    charged = sum((wallet.charged for wallet in ours), Fraction(0))
    credits_ = sum(wallet.credited_minor for wallet in ours)
    left = credits_ - sum(wallet.debited_minor for wallet in ours)
    balances = sum(wallet.balance_minor for wallet in ours)
    return [
        line(f"{code} exact cost = debits + remainders", exact, charged),
        line(f"{code} credits", credited, credits_),
        line(f"{code} balances = credits - debits", left, balances),
    ]


def wallet_line(cost: Mapping[WalletKey, Fraction], wallets: Sequence[Wallet]) -> Line:
    """Compare each wallet: an error in one could hide behind an error in another."""
    exact = sum(
        wallet.charged == cost.get(wallet.key, 0)
        and wallet.balance_minor == wallet.credited_minor - wallet.debited_minor
        for wallet in wallets
    )
    return line("wallets that are exact", len({*cost, *(w.key for w in wallets)}), exact)


# --- alerts -----------------------------------------------------------------------------------


def alerts_due(history: Iterable[BalanceAfter], rules: Sequence[RuleSet]) -> Alerts:
    """Replay the balances against the rules; return the alerts of each wallet by their number.

    A rule alerts once when a balance falls to its threshold, and once when it has recovered.
    """
    due: Alerts = defaultdict(dict)
    low: set[tuple[WalletKey, RuleSet]] = set()
    for customer_id, currency, after in history:
        key = customer_id, currency
        for rule in _rules_of(key, rules):
            is_low = (key, rule) in low
            if not is_low and after <= rule.threshold_minor:
                low.add((key, rule))
            elif is_low and after >= rule.recover_at_minor:
                low.remove((key, rule))
            else:
                continue
            kind = "recovered" if is_low else "low"
            due[key][len(due[key]) + 1] = Alert(kind, rule.threshold_minor, after)
    return dict(due)


def _rules_of(key: WalletKey, rules: Sequence[RuleSet]) -> list[RuleSet]:
    """Return the rules of a wallet, from the highest down: its own replace the default."""
    of_currency = [rule for rule in rules if rule.currency == key[1]]
    own = [rule for rule in of_currency if rule.customer_id == key[0]]
    chosen = own or [rule for rule in of_currency if rule.customer_id is None]
    return sorted(chosen, key=lambda rule: -rule.threshold_minor)


def alert_lines(due: Alerts, inbox: Inbox) -> list[Line]:
    """Compare the alerts that were due with those that arrived."""
    received = inbox.alerts()
    wallets = due.keys() | received.keys()
    as_due = sum(due.get(key) == received.get(key) for key in wallets)
    return [
        line("alerts due = alerts received", sum(map(len, due.values())), inbox.count),
        line("wallets whose alerts came as due, without gaps", len(wallets), as_due),
        line("webhooks with a bad signature", 0, inbox.bad_signatures),
        line("webhooks that make no sense", 0, inbox.malformed),
    ]


# --- payments ---------------------------------------------------------------------------------


def paid(code: str, payments: Iterable[Payment]) -> int:
    """Return what the provider has charged in a currency, in minor units."""
    return sum(
        each.amount_minor
        for each in payments
        if each.currency == code and each.status == "succeeded"
    )


def payment_lines(
    sold: Sold,
    payments: Sequence[Payment],
    charged: Sequence[Charged],
    reported: Collection[str],
) -> list[Line]:
    """Judge the ledger by the list of the provider."""
    by_id = {each.charge_id: each for each in charged}
    made = [each for each in payments if each.status == "succeeded"]
    settled = sum(_settles(each, by_id.get(each.charge_id)) for each in made)
    top_ups = sum(each.origin == "top_up" and bool(each.credited_minor) for each in charged)
    unpaid = by_id.keys() - {each.charge_id for each in made}
    told = sum(each.payment_id in reported for each in payments)
    return [
        line("payments that the gateway made", sold.payments, len(made)),
        line("  settled, each once", len(made), settled),
        line("  of them automatic top-ups", sold.top_ups, top_ups),
        line("payments that it declined", sold.declined, len(payments) - len(made)),
        line("  credited for them", 0, sum(sum(by_id[each].credited_minor) for each in unpaid)),
        line("payments that its webhooks told of", len(payments), told),
        *(
            each
            for code in CURRENCIES
            for each in (
                line(
                    f"{code} sold = charged by the gateway",
                    sold.amounts[code],
                    paid(code, payments),
                ),
                line(f"{code} charged = credited", paid(code, payments), _credited(code, charged)),
            )
        ),
    ]


def _credited(code: str, charged: Iterable[Charged]) -> int:
    return sum(sum(each.credited_minor) for each in charged if each.currency == code)


def _settles(payment: Payment, charged: Charged | None) -> bool:
    return (
        charged is not None
        and not charged.is_open
        and (charged.status, charged.payment_id) == ("settled", payment.payment_id)
        and list(charged.credited_minor) == [payment.amount_minor]
    )


def kill_line(kill: Kill) -> Line:
    """Say whether a kill was recovered from in time."""
    took = "not at all" if kill.drained_s is None else f"{kill.drained_s:.1f} s"
    limit = f"within {RECOVER_WITHIN_S:.0f} s"
    return Line(f"recovered from the kill of {kill.role}", limit, took, kill.recovered)
