"""Gather what the account compares, and write it down as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sqlalchemy import Connection

from metering import db
from metering.buffer.entry import stream_position
from metering.debit.cursor import read_cursors
from metering.verify import find_faults
from worker.demo import statements
from worker.demo.kills import Kill
from worker.demo.prices import CURRENCIES, plain_fraction, price_list_json
from worker.demo.producers import FLUSH_EVENTS, Producers
from worker.demo.receiver import Received, WalletKey
from worker.demo.reconcile import (
    Charged,
    EntryState,
    Expected,
    Found,
    Line,
    Payment,
    WalletState,
    charged,
    credited_for_payments,
    exact_cost,
    paid_through_gateway,
    settled_once,
)
from worker.demo.scene import CURRENCY_OF, Scene
from worker.demo.shop import Sold
from worker.demo.traffic import tally_of
from worker.demo.watch import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """Where the stores stood before the traffic: an older run may have used the same data."""

    batch_id: int
    cursors_settled: int
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Figures of the run. Lag in s from accepted to debited: per event, as of its batch's oldest.

    So the percentiles are upper bounds. `traffic_s`: from the first event until all was drained.
    """

    traffic_s: float
    events: int
    lag_p50_s: float
    lag_p99_s: float

    @property
    def events_per_s(self) -> float:
        """Events drained per second of the traffic."""
        return self.events / self.traffic_s if self.traffic_s else 0.0


def read_before(conn: Connection) -> Before:
    """Return where the batches and cursors stand now."""
    cursors = read_cursors(conn)
    return Before(
        batch_id=conn.execute(statements.LAST_BATCH).scalar_one(),
        cursors_settled=sum(cursor.settled_count for cursor in cursors),
        lost=sum(cursor.lost_count for cursor in cursors),
    )


def expected_of(scene: Scene, producers: Producers, sold: Sold, redis_kills: int) -> Expected:
    """Return what must come of the events that were sent, and of what was sold meanwhile."""
    tally = tally_of(producers.sent)
    costs = zip(scene.customers, CURRENCY_OF, tally.cost(CURRENCY_OF), strict=True)
    cost: dict[WalletKey, Fraction] = {(who, currency): sum_ for who, currency, sum_ in costs}
    # The other wallets of the customers are charged nothing.
    for customer in scene.customers:
        for currency in CURRENCIES:
            cost.setdefault((customer, currency), Fraction(0))
    return Expected(
        sent=tally.sent,
        posted=tally.posted,
        unmetered=tally.unmetered,
        repeated=tally.repeated,
        refused=tally.refused,
        # A send that fails may have been carried out; so may the one try on a new connection that
        # a client makes by itself when Redis was killed.
        resent_max=FLUSH_EVENTS * 2 * (producers.retries + redis_kills),
        cost=cost,
        credited=scene.credited,
        rules=scene.rules,
        payments=sold.payments,
        declined=sold.declined,
        top_ups=sold.top_ups,
        sold=sold.amounts,
    )


def found_in(
    conn: Connection,
    scene: Scene,
    before: Before,
    *,
    counts: Counts,
    received: Received,
    payments: Sequence[Payment],
    kills: Sequence[Kill],
) -> Found:
    """Read what the stores say; `conn` is a snapshot."""
    business = {"business_id": scene.business_id}
    cursors = read_cursors(conn)
    return Found(
        counts=counts,
        cursors_settled=sum(c.settled_count for c in cursors) - before.cursors_settled,
        lost=sum(c.lost_count for c in cursors) - before.lost,
        refused={r.reason: r.events for r in conn.execute(statements.REFUSED_BY_REASON, business)},
        wallets=read_wallets(conn, scene),
        entries=read_entries(conn, scene),
        received=received,
        uncredited=conn.execute(statements.UNCREDITED, business).scalar_one(),
        payments=payments,
        charged=read_charged(conn, scene),
        told=read_told(conn, scene),
        faults=[f"{fault.invariant}: {fault.detail}" for fault in find_faults(conn, deep=True)],
        kills=kills,
    )


def read_wallets(conn: Connection, scene: Scene) -> list[WalletState]:
    """Return where the wallets of the scene stand."""
    return [
        WalletState(
            key=(row.customer_id, row.currency),
            balance_minor=row.balance_minor,
            remainder=row.remainder,
        )
        for row in conn.execute(statements.WALLETS, {"business_id": scene.business_id})
    ]


def read_entries(conn: Connection, scene: Scene) -> list[EntryState]:
    """Return the histories of the scene's wallets."""
    return [
        EntryState(
            key=(row.customer_id, row.currency),
            is_usage=row.kind == "usage",
            is_credit=row.is_credit,
            amount_minor=row.amount_minor,
            after_minor=row.after_minor,
        )
        for row in conn.execute(statements.ENTRIES, {"business_id": scene.business_id})
    ]


def read_charged(conn: Connection, scene: Scene) -> list[Charged]:
    """Return the purchases of the scene's customers that were charged, or are to be."""
    rows = conn.execute(statements.CHARGED, {"business_id": scene.business_id})
    return db.rows(Charged, rows)


def read_told(conn: Connection, scene: Scene) -> set[str]:
    """Return the ids of payments that the gateway's webhooks told of, and that were followed."""
    return set(conn.execute(statements.TOLD, {"business_id": scene.business_id}).scalars())


def timing_of(conn: Connection, before: Before, traffic_s: float) -> Timing:
    """Work out the figures of the run from its batches."""
    lags: list[tuple[float, int]] = []
    for row in conn.execute(statements.BATCHES_AFTER, {"after": before.batch_id}):
        buffered_at = stream_position(row.first_stream_id)[0] / 1000
        lags.append((max(0.0, float(row.debited_at) - buffered_at), row.events))
    lags.sort()
    return Timing(
        traffic_s=traffic_s,
        events=sum(events for _, events in lags),
        lag_p50_s=_percentile(lags, 0.50),
        lag_p99_s=_percentile(lags, 0.99),
    )


def _percentile(weighted: Sequence[tuple[float, int]], share: float) -> float:
    """Return the value that `share` of the weight does not exceed; `weighted` ascends."""
    left = share * sum(weight for _, weight in weighted)
    for value, weight in weighted:
        left -= weight
        if left <= 0:
            return value
    return 0.0


def facts_of(timing: Timing, kills: Sequence[Kill], total_s: float) -> list[tuple[str, str]]:
    """Return the figures of the run as names and texts."""
    recoveries = [
        f"{kill.role} back after {_seconds(kill.back_s)}, drained after {_seconds(kill.drained_s)}"
        for kill in kills
    ]
    return [
        ("whole run", f"{total_s:.1f} s"),
        ("traffic", f"{timing.traffic_s:.1f} s, {timing.events_per_s:,.0f} events/s"),
        (
            "lag, accepted to debited",
            f"p50 {timing.lag_p50_s:.2f} s, p99 {timing.lag_p99_s:.2f} s",
        ),
        ("killed", "; ".join(recoveries) or "nothing"),
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def as_json(
    scene: Scene,
    expected: Expected,
    found: Found,
    lines: Sequence[Line],
    timing: Timing,
    *,
    over_http: int,
) -> dict[str, Any]:
    """Return the account for a program; amounts in minor units, exact ones as decimal text."""
    return {
        "ok": all(line.holds for line in lines),
        "lines": [
            {"name": n.name, "expected": n.expected, "found": n.actual, "ok": n.holds}
            for n in lines
        ],
        "events": expected.sent,
        "over_http": over_http,
        "in": found.counts.accepted,
        "posted": found.counts.posted,
        "duplicate": found.counts.duplicate,
        "refused": found.counts.refused,
        "buffered": found.counts.buffered,
        "unmetered": found.counts.unmetered,
        "price_list": price_list_json(),
        "customers": [
            {"customer_id": customer, "currency": currency}
            for customer, currency in zip(scene.customers, CURRENCY_OF, strict=True)
        ],
        **_money_json(expected, found),
        "payments": _payments_json(found),
        "alerts": {
            "received": found.received.count,
            "repeated": found.received.repeated,
            "bad_signatures": found.received.bad_signatures,
        },
        "kills": [_kill_json(kill) for kill in found.kills],
        "traffic_s": round(timing.traffic_s, 3),
        "events_per_s": round(timing.events_per_s, 1),
        "lag_p50_s": round(timing.lag_p50_s, 3),
        "lag_p99_s": round(timing.lag_p99_s, 3),
    }


def _money_json(expected: Expected, found: Found) -> dict[str, dict[str, object]]:
    sums = {code: charged(code, found) for code in CURRENCIES}
    return {
        "exact_cost": {code: plain_fraction(exact_cost(code, expected)) for code in CURRENCIES},
        "debits": {code: debits for code, (debits, _) in sums.items()},
        "remainders": {code: plain_fraction(remainders) for code, (_, remainders) in sums.items()},
        "credits": {
            code: expected.credited.get(code, 0) + paid_through_gateway(code, found)
            for code in CURRENCIES
        },
    }


def _payments_json(found: Found) -> dict[str, object]:
    """Return what was bought during the traffic, by the gateway's own list and by the ledger."""
    return {
        "made": sum(payment.status == "succeeded" for payment in found.payments),
        "declined": sum(payment.status == "failed" for payment in found.payments),
        "settled_once": settled_once(found),
        "told_by_webhook": sum(payment.payment_id in found.told for payment in found.payments),
        "top_ups": sum(each.origin == "top_up" for each in found.charged),
        "charged": {code: paid_through_gateway(code, found) for code in CURRENCIES},
        "credited": {code: credited_for_payments(code, found) for code in CURRENCIES},
    }


def _kill_json(kill: Kill) -> dict[str, object]:
    return {
        "role": kill.role,
        "pid": kill.pid,
        "at_event": kill.at_event,
        "back_s": kill.back_s,
        "drained_s": kill.drained_s,
        "recovered": kill.recovered,
    }
