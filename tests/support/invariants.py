"""The oracle: it derives from the producer's records what must hold after any fault.

acked ⊆ applied ⊆ attempted, each event at most once; every entry continues the one before it;
no part of the exact cost is lost; the alerts follow from the balances. It computes everything
again, so that it does not repeat a mistake of the code that it checks.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, text

from metering.buffer.keys import BACKLOG, stream_key
from metering.buffer.stream import UsageBuffer
from metering.verify import find_faults
from support.tenant import Shop

Rows = Sequence[Row[Any]]

EVENTS = "SELECT event_id, currency, cost_minor FROM usage_events"
REFUSED = "SELECT event_id FROM refused_events WHERE replayed_at IS NULL"
TOTALS = """SELECT coalesce(sum(posted_count), 0) AS posted,
    coalesce(sum(refused_count), 0) AS refused,
    coalesce(sum(duplicate_count), 0) AS duplicate FROM usage_batches"""
WALLETS = "SELECT wallet_id, currency, balance_minor, version, remainder FROM wallets"
ENTRIES = "SELECT * FROM ledger_entries ORDER BY wallet_id, version"
# A rule of the wallet replaces the defaults of the business.
RULES = """SELECT w.wallet_id, r.threshold_minor, r.recover_at_minor FROM wallets w
    JOIN low_credit_rules r ON r.wallet_id = w.wallet_id OR (r.wallet_id IS NULL
        AND r.business_id = w.business_id AND r.currency = w.currency AND NOT EXISTS
        (SELECT 1 FROM low_credit_rules own WHERE own.wallet_id = w.wallet_id))"""
ALERTS = """SELECT wallet_id, sequence, type, CAST(data->>'threshold_amount' AS bigint) AS threshold
    FROM webhook_events WHERE type IN ('credit.balance_low', 'credit.balance_recovered')
    ORDER BY wallet_id, sequence"""


@dataclass
class Attempts:
    """A producer's records: the cost of each event, events that cannot be charged, acked events.

    An attempt is recorded before it is made, and an ack after it arrived. After a fault in
    between, the event may or may not have been applied.
    """

    costs: dict[str, tuple[str, Decimal]] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    acked: set[str] = field(default_factory=set)

    @property
    def ids(self) -> set[str]:
        return self.bad | self.costs.keys()


def broken(shop: Shop, attempts: Attempts) -> list[str]:
    """Return every sentence that does not hold. Call it while nothing is in progress.

    Rules must have been set while their wallets were above the threshold.
    """
    with shop.sessions.snapshot() as conn:
        rows = {
            name: conn.execute(text(statement)).all()
            for name, statement in (
                ("events", EVENTS), ("refused", REFUSED), ("wallets", WALLETS),
                ("entries", ENTRIES), ("rules", RULES), ("alerts", ALERTS),
            )
        }  # fmt: skip
        entries = {key: list(of) for key, of in groupby(rows["entries"], lambda e: e.wallet_id)}
        return [
            *_ends(attempts, rows["events"], rows["refused"]),
            *_keys(conn, rows["events"]),
            *_account(conn, shop.buffer),
            *_chains(rows["wallets"], entries),
            *_costs(attempts, rows),
            *_alerts(rows["rules"], rows["alerts"], entries),
            *(f"verify: {fault}" for fault in find_faults(conn)),
        ]


def buffered(buffer: UsageBuffer) -> int:
    """Return how many events the streams hold, without leaving the pulse of a sweep."""
    streams = [buffer.redis.xrange(stream_key(shard)) or [] for shard in buffer.shards]
    return sum(int((fields or {})[b"n"]) for stream in streams for _, fields in stream)


def _ends(attempts: Attempts, events: Rows, refused: Rows) -> Iterator[str]:
    """Yield violations of: acked ⊆ applied ⊆ attempted, each at most once."""
    posted, dead = {row.event_id for row in events}, {row.event_id for row in refused}
    ends = Counter(row.event_id for row in (*events, *refused))
    yield from _none("acked, but not applied", attempts.acked - posted - dead)
    yield from _none("applied, but never attempted", (posted | dead) - attempts.ids)
    yield from _none("applied more than once", (key for key, times in ends.items() if times > 1))
    yield from _none("charged, but should be refused", posted & attempts.bad)
    yield from _none("refused, but should be charged", dead - attempts.bad)


def _keys(conn: Connection, events: Rows) -> Iterator[str]:
    keys = conn.execute(text("SELECT count(*) FROM usage_event_keys")).scalar_one()
    yield from _same("keys taken, events kept", keys, len(events))


def _account(conn: Connection, buffer: UsageBuffer) -> Iterator[str]:
    """In = posted + duplicate + refused + buffered, and the counters of Redis match its streams."""
    totals = conn.execute(text(TOTALS)).one()
    accepted = sum(buffer.counters(shard).accepted for shard in buffer.shards)
    held = buffered(buffer)
    ended = totals.posted + totals.duplicate + totals.refused
    yield from _same("in = posted + duplicate + refused + buffered", accepted, ended + held)
    yield from _same(
        "buffered by the accounts", sum(buffer.counters(s).buffered for s in buffer.shards), held
    )
    backlog = buffer.redis.hget(BACKLOG, "events") or 0
    yield from _same("buffered by the high-water mark", int(backlog), held)


def _chains(wallets: Rows, entries: Mapping[str, Rows]) -> Iterator[str]:
    """Each entry continues the one before it, and the wallet matches its last entry."""
    for wallet in wallets:
        name, balance, remainder = f"wallet {wallet.wallet_id}", 0, Decimal(0)
        of_wallet = entries.get(wallet.wallet_id, [])
        for version, entry in enumerate(of_wallet, 1):
            signed = entry.amount_minor if entry.is_credit else -entry.amount_minor
            cost = entry.exact_cost if entry.kind == "usage" else Decimal(0)
            taken = entry.amount_minor if entry.kind == "usage" else 0
            yield from _same(f"version of {name}", entry.version, version)
            yield from _same(f"before {version} of {name}", entry.before_minor, balance)
            yield from _same(f"remainder before {version}", entry.remainder_before, remainder)
            balance, remainder = balance + signed, remainder + cost - taken
            yield from _same(f"after {version} of {name}", entry.after_minor, balance)
            yield from _same(f"remainder after {version}", entry.remainder_after, remainder)
        yield from _same(f"balance of {name}", wallet.balance_minor, balance)
        yield from _same(f"version of {name}", wallet.version, len(of_wallet))
        yield from _same(f"remainder of {name}", wallet.remainder, remainder)


def _costs(attempts: Attempts, rows: Mapping[str, Rows]) -> Iterator[str]:
    """Exact cost = debits + remainders, per currency; each event has the cost of its price."""
    expected: dict[str, Decimal] = defaultdict(Decimal)
    for event in rows["events"]:
        currency, cost = attempts.costs.get(event.event_id, (None, Decimal(0)))
        yield from _same(
            f"cost of {event.event_id}", (event.currency, event.cost_minor), (currency, cost)
        )
        expected[event.currency] += cost
    charged: dict[str, Decimal] = defaultdict(Decimal)
    for entry in rows["entries"]:
        charged[entry.currency] += entry.amount_minor if entry.kind == "usage" else 0
    for wallet in rows["wallets"]:
        charged[wallet.currency] += wallet.remainder
    for currency in expected.keys() | charged.keys():
        label = f"debits + remainders in {currency}"
        yield from _same(label, charged[currency], expected[currency])


def _alerts(rules: Rows, alerts: Rows, entries: Mapping[str, Rows]) -> Iterator[str]:
    """The alerts that follow from the balances and rules = the rows of the outbox."""
    due = {}
    for rule in rules:
        crossings = list(_crossings(rule, entries.get(rule.wallet_id, [])))
        if crossings:
            due[rule.wallet_id, rule.threshold_minor] = crossings
    sent: dict[tuple[str, int], list[str]] = defaultdict(list)
    numbers: dict[str, list[int]] = defaultdict(list)
    for alert in alerts:
        sent[alert.wallet_id, alert.threshold].append(alert.type)
        numbers[alert.wallet_id].append(alert.sequence)
    yield from _same("alerts due, rows of the outbox", due, dict(sent))
    for wallet_id, sequence in numbers.items():
        yield from _same(f"alert numbers of {wallet_id}", sequence, [*range(1, len(sequence) + 1)])


def _crossings(rule: Row[Any], entries: Rows) -> Iterator[str]:
    is_low = False
    for entry in entries:
        if not is_low and entry.after_minor <= rule.threshold_minor:
            is_low = True
            yield "credit.balance_low"
        elif is_low and entry.after_minor >= rule.recover_at_minor:
            is_low = False
            yield "credit.balance_recovered"


def _same(what: str, left: object, right: object) -> Iterator[str]:
    if left != right:
        yield f"{what}: {left} is not {right}"


def _none(what: str, found: Iterable[str]) -> Iterator[str]:
    if culprits := sorted(found):
        yield f"{what}: {len(culprits)}, such as {culprits[:3]}"
