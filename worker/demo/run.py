"""The run itself: set the scene, send the traffic while processes die, wait, take stock."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from functools import partial
from itertools import pairwise, product
from operator import itemgetter
from typing import Final, NamedTuple

from sqlalchemy import Connection

from metering import db
from metering.errors import GullakError
from metering.verify import find_faults
from worker.context import open_buffer
from worker.demo import statements
from worker.demo.gateway import Gateway
from worker.demo.kills import RECOVER_WITHIN_S, Kill, Victim, kill
from worker.demo.live import Display
from worker.demo.prices import CURRENCIES
from worker.demo.producers import FLUSH_EVENTS, Pace, Producers
from worker.demo.receiver import Alerts, WalletKey, receiving
from worker.demo.reconcile import (
    BalanceAfter,
    Charged,
    Wallet,
    alert_lines,
    alerts_due,
    event_lines,
    kill_line,
    money_lines,
    paid,
    payment_lines,
    wallet_line,
)
from worker.demo.report import Line, Report, line
from worker.demo.scene import CURRENCY_OF, Scene, make_scene
from worker.demo.shop import Sold, buy_more, watch_over
from worker.demo.traffic import Planned, tally_of
from worker.demo.watch import STORE_AWAY, Watch
from worker.local.up import Stack
from worker.session import Sessions, make_engine
from worker.settings import Settings

TICK_S: Final = 0.1
CREDITED_WITHIN_S: Final = 15.0
BOUGHT_WITHIN_S: Final = 15.0
# Beyond the time that sending should take.
SENT_WITHIN_S: Final = 60.0
DRAINED_WITHIN_S: Final = 30.0
# A charge that was cut off before the provider was asked is taken up when its lease is over.
PAID_WITHIN_S: Final = 100.0
# A call that was cut off is repeated when its lease is over.
ALERTED_WITHIN_S: Final = 30.0


class StoreLostError(GullakError):
    """A server did not come back."""


class Plan(NamedTuple):
    """The events, how long sending them takes, and which roles are killed meanwhile."""

    events: list[Planned]
    duration_s: float
    victims: Sequence[Victim]
    trace: str | None = None


def play(
    stack: Stack,
    config: Settings,
    plan: Plan,
    display: Display,
    check: Callable[[], None],
) -> Report:
    """Run the demo on a started stack. `check` raises to end it.

    Raises:
        StoreLostError, SQLAlchemyError, RedisError: a server did not come back.
        RoleNotReadyError: the payment gateway did not start.

    """
    run = Run(stack, config, plan, display, check)
    with run.cleanup:
        run.set_scene()
        pace = Pace(len(plan.events), plan.duration_s)
        with Producers(config, run.scene, plan.events, pace, stack.api_url) as producers:
            display.sent = lambda: producers.sent_count
            run.send(producers, pace)
            run.settle()
            return run.report(producers)


class Run:
    """One demo. Its first methods are its steps, in order."""

    scene: Scene

    def __init__(
        self,
        stack: Stack,
        config: Settings,
        plan: Plan,
        display: Display,
        check: Callable[[], None],
    ) -> None:
        self._stack, self._plan, self._display, self._check = stack, plan, display, check
        self.cleanup = ExitStack()
        engine, buffer = make_engine(config), open_buffer(config)
        self.cleanup.callback(engine.dispose)
        self.cleanup.callback(buffer.redis.close)
        self._transaction, self._snapshot = Sessions(engine).transaction, Sessions(engine).snapshot
        self._watch = Watch(self._transaction, buffer)
        self._inbox = self.cleanup.enter_context(receiving())
        display.alerts = lambda: self._inbox.count
        self._gateway = Gateway()
        self.cleanup.callback(self._gateway.close)
        # The spending of each customer in whole minor units: credit and rules depend on it.
        self._spend = [int(cost) for cost in tally_of(plan.events).cost(CURRENCY_OF)]
        self._sold = Sold()
        self._kills: list[Kill] = []
        self._began_s = self._drained_s = time.monotonic()

    def set_scene(self) -> None:
        """Make the business; return when the paid orders of its customers are credited."""
        account, spend = self._gateway.account(), self._spend
        scene = make_scene(self._transaction, spend, self._inbox.url, account)
        self.scene, self._watch.customers = scene, scene.customers
        self._inbox.open(scene.secret)
        self._gateway.start(self._stack.data_dir, self._stack.api_url, scene.account_id)
        self._wait(CREDITED_WITHIN_S, self._is_credited)
        watch_over(self._transaction, scene, spend, self._sold)
        customers = len(scene.customers)
        self._display.tell(f"{customers} customers, {customers} paid orders credited")
        self._watch.begin()

    def send(self, producers: Producers, pace: Pace) -> None:
        """Send the traffic. In its middle customers buy more, and processes are killed."""
        self._began_s = time.monotonic()
        within_s = self._plan.duration_s + SENT_WITHIN_S
        for (mark, victim), (next_mark, _) in pairwise(self._steps()):
            pace.limit = mark
            self._wait(within_s, partial(producers.has_sent, mark))
            if victim is None:
                self._wait(BOUGHT_WITHIN_S, self._buy)
            else:
                self._kill(victim, producers.sent_count)
                pace.limit = next_mark
                self._recover(self._kills[-1])
        pace.limit = len(self._plan.events)
        self._wait(within_s, lambda: producers.has_sent(pace.limit) and not producers.pending)
        self._display.tell("all traffic is in; waiting until it is drained")

    def _steps(self) -> list[tuple[int, Victim | None]]:
        """Return after how many events which role is killed. None: customers buy; and the end."""
        events, victims = len(self._plan.events), self._plan.victims
        kills = [(events * n // (len(victims) + 1), each) for n, each in enumerate(victims, 1)]
        return [*sorted([(events // 2, None), *kills], key=itemgetter(0)), (events, None)]

    def settle(self) -> None:
        """Wait until all is drained and paid for, and the alerts that are due have arrived."""
        self._wait(DRAINED_WITHIN_S, lambda: self._watch.last.is_drained and self._is_credited())
        self._drained_s = time.monotonic()
        self._wait(PAID_WITHIN_S, self._is_paid)
        with self._transaction() as conn:
            due = self._alerts_due(conn)
        count = sum(map(len, due.values()))
        self._wait(ALERTED_WITHIN_S, lambda: self._inbox.count >= count)

    # --- the parts of a step ------------------------------------------------------------------

    def _wait(self, within_s: float, is_done: Callable[[], bool]) -> bool:
        """Look and show until it is done; return whether it was done in time."""
        ends_at = time.monotonic() + within_s
        while time.monotonic() < ends_at:
            self._check()
            self._display.update(self._watch.look(), self.scene.customers)
            with suppress(*STORE_AWAY):  # a server is being started anew
                if is_done():
                    return True
            time.sleep(TICK_S)
        return False

    def _kill(self, victim: Victim, at_event: int) -> None:
        self._wait(RECOVER_WITHIN_S, lambda: victim in self._stack.pids)
        self._kills.append(kill(victim, self._stack.pids[victim], at_event))
        self._display.tell(f"killed {victim} (process {self._kills[-1].pid})")

    def _recover(self, killed: Kill) -> None:
        stack, watch, tell = self._stack, self._watch, self._display.tell

        def is_back() -> bool:
            return killed.is_back(stack.pids.get(killed.role), stack.missing(), watch.last)

        if self._wait(RECOVER_WITHIN_S, is_back):
            tell(f"{killed.role} is back after {killed.back_s:.1f} s")
        if self._wait(RECOVER_WITHIN_S, lambda: killed.is_drained(watch.last)):
            tell(f"drained again {killed.drained_s:.1f} s after {killed.role} was killed")

    def _buy(self) -> bool:
        charges = buy_more(self._transaction, self.scene, self._spend, self._sold)
        news = f"{len(charges)} customers buy more credit through the payment gateway"
        self._display.tell(news)
        return True

    @property
    def _business(self) -> dict[str, object]:
        return {"business_id": self.scene.business_id}

    def _is_credited(self) -> bool:
        with self._transaction() as conn:
            return not conn.execute(statements.UNCREDITED, self._business).scalar_one()

    def _is_paid(self) -> bool:
        """Tell whether every charge has ended, and webhooks have reported all of its payments."""
        with self._transaction() as conn:
            charged, reported = self._charged(conn), self._reported(conn)
        if len(charged) < self._sold.payments + self._sold.declined or not self._is_credited():
            return False
        payments = {payment.payment_id for payment in self._gateway.payments()}
        return not any(each.is_open for each in charged) and reported >= payments

    def _charged(self, conn: Connection) -> list[Charged]:
        return db.rows(Charged, conn.execute(statements.CHARGED, self._business))

    def _reported(self, conn: Connection) -> set[str]:
        return set(conn.execute(statements.REPORTED, self._business).scalars())

    def _alerts_due(self, conn: Connection) -> Alerts:
        history = db.rows(BalanceAfter, conn.execute(statements.BALANCES_AFTER, self._business))
        return alerts_due(history, self.scene.rules)

    # --- the account --------------------------------------------------------------------------

    def report(self, producers: Producers) -> Report:
        """Take stock.

        Raises:
            StoreLostError: a server did not come back.

        """
        if away := self._watch.look().away:
            raise StoreLostError(f"a server did not come back: {', '.join(away)}")
        with self._snapshot() as conn:
            lines = [*self._lines(conn, producers), *map(kill_line, self._kills)]
        return Report(
            lines=lines,
            kills=self._kills,
            events=len(producers.sent),
            over_http=producers.over_http,
            traffic_s=self._drained_s - self._began_s,
            duration_s=self._display.time_s(),
            trace=self._plan.trace,
            customers=list(zip(self.scene.customers, CURRENCY_OF, strict=True)),
        )

    def _lines(self, conn: Connection, producers: Producers) -> Iterator[Line]:
        tally, cost = tally_of(producers.sent), self._cost(producers)
        wallets = db.rows(Wallet, conn.execute(statements.WALLETS, self._business))
        payments = self._gateway.payments()
        refused = {
            row.reason: row.events
            for row in conn.execute(statements.REFUSED_BY_REASON, self._business)
        }
        yield from event_lines(tally, self._resent_max(producers), self._watch.last.counts, refused)
        for code in CURRENCIES:
            credited = self.scene.credited[code] + paid(code, payments)
            yield from money_lines(code, cost, credited, wallets)
        yield wallet_line(cost, wallets)
        yield from alert_lines(self._alerts_due(conn), self._inbox)
        yield from payment_lines(self._sold, payments, self._charged(conn), self._reported(conn))
        faults = "; ".join(f"{fault.invariant}: {fault.detail}" for fault in find_faults(conn))
        yield line("faults found by verify", "none", faults or "none")

    def _cost(self, producers: Producers) -> dict[WalletKey, Fraction]:
        """Return what was used, by wallet. A wallet in the other currency is charged nothing."""
        who = self.scene.customers
        cost: dict[WalletKey, Fraction] = dict.fromkeys(product(who, CURRENCIES), Fraction(0))
        used = tally_of(producers.sent).cost(CURRENCY_OF)
        return cost | dict(zip(zip(who, CURRENCY_OF, strict=True), used, strict=True))

    def _resent_max(self, producers: Producers) -> int:
        """Return how many events may have arrived twice.

        A send that fails may have been carried out. So may the one try on a new connection that a
        client makes by itself when Redis was killed.
        """
        redis_kills = sum(each.role == Victim.REDIS for each in self._kills)
        return FLUSH_EVENTS * 2 * (producers.retries + redis_kills)
