"""The run itself: set the scene, send the traffic while processes die, wait, take stock."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from celery import Celery

from metering.buffer.stream import UsageBuffer
from metering.ids import ChargeId, PurchaseId
from worker.broker import BrokerAwayError, send
from worker.context import open_buffer
from worker.demo import statements
from worker.demo.figures import (
    Before,
    Timing,
    as_json,
    expected_of,
    found_in,
    read_before,
    read_charged,
    read_entries,
    read_told,
    timing_of,
)
from worker.demo.gateway import Gateway
from worker.demo.kills import Kill, Killer, Processes, Victim
from worker.demo.live import Display
from worker.demo.producers import Pace, Producers
from worker.demo.receiver import Inbox, Receiver
from worker.demo.reconcile import Line, alerts_due, reconcile
from worker.demo.scene import CURRENCY_OF, Scene, make_scene
from worker.demo.shop import Sold, buy_more, watch_over
from worker.demo.traffic import Planned, tally_of
from worker.demo.watch import STORE_AWAY, Watch
from worker.session import Sessions, make_engine
from worker.settings import Settings

TICK_S: Final = 0.1
CREDITED_WITHIN_S: Final = 15.0
# After the last kill was recovered from, or given up.
SENT_WITHIN_S: Final = 60.0
DRAINED_WITHIN_S: Final = 30.0
# A charge that was cut off before anybody was asked is taken up again when its lease is over.
PAID_WITHIN_S: Final = 100.0
# A call that was cut off is repeated when its lease is over.
ALERTED_WITHIN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done: the events, how long sending them takes, which roles are killed."""

    events: list[Planned]
    duration_s: float
    roles: Sequence[Victim]


@dataclass(frozen=True, slots=True)
class Report:
    """How it went: the account, and all of it for a program."""

    lines: Sequence[Line]
    kills: Sequence[Kill]
    timing: Timing
    json: dict[str, Any]


class Wake:
    """Sends tasks, each twice: one may always be delivered again."""

    def __init__(self, config: Settings) -> None:
        self._app = Celery("gullak-demo")
        self._app.config_from_object("celeryconfig")
        self._app.conf.update({"broker_url": config.celery_broker_url()})

    def __call__(self, task: str, about: PurchaseId | ChargeId) -> None:
        """Send it; what does not go out is found by the worker's own sweep."""
        try:
            for _ in range(2):
                send(self._app, task, about)
        except BrokerAwayError:
            return

    def close(self) -> None:
        """Close the connection to the broker."""
        self._app.close()


@dataclass(slots=True)
class Stage:
    """What a run works with; opened once."""

    config: Settings
    sessions: Sessions
    buffer: UsageBuffer
    watch: Watch
    receiver: Receiver
    wake: Wake
    gateway: Gateway
    display: Display
    spend: list[int] = field(default_factory=list)
    sold: Sold = field(default_factory=Sold)


def play(
    processes: Processes, folder: Path, config: Settings, plan: Plan, display: Display
) -> Report:
    """Run the demo on a started stack whose data is in `folder`.

    Raises:
        SQLAlchemyError, RedisError: a server did not come back.
        RoleNotReadyError: the payment gateway did not start.

    """
    with ExitStack() as cleanup:
        stage = _open(config, display, cleanup)
        scene = _set_scene(stage, plan, folder, processes.api_url)
        stage.watch.begin()
        with stage.sessions.transaction() as conn:
            before = read_before(conn)
        pace = Pace(len(plan.events), plan.duration_s)
        killer = Killer(processes, pace, plan.roles, len(plan.events), display.tell)
        with Producers(config, scene, plan.events, pace, processes.api_url) as producers:
            display.introduce(scene, stage.receiver, lambda: producers.sent_count)
            traffic_s = _send(stage, scene, producers, killer, plan)
            _await_alerts(stage, scene)
            return _take_stock(
                stage, scene, producers, kills=killer.kills, before=before, traffic_s=traffic_s
            )


def _open(config: Settings, display: Display, cleanup: ExitStack) -> Stage:
    engine = make_engine(config)
    cleanup.callback(engine.dispose)
    buffer = open_buffer(config)
    cleanup.callback(buffer.redis.close)
    wake = Wake(config)
    cleanup.callback(wake.close)
    gateway = Gateway()
    cleanup.callback(gateway.close)
    sessions = Sessions(engine)
    receiver = cleanup.enter_context(Receiver())
    watch = Watch(sessions.transaction, buffer)
    return Stage(config, sessions, buffer, watch, receiver, wake, gateway, display)


def _set_scene(stage: Stage, plan: Plan, folder: Path, api_url: str) -> Scene:
    """Make the business; return when all credit that was paid for is in the wallets."""
    costs = tally_of(plan.events).cost(CURRENCY_OF)
    stage.spend = [int(cost) for cost in costs]
    account = stage.gateway.account()
    transaction = stage.sessions.transaction
    scene, orders = make_scene(transaction, stage.spend, stage.receiver.url, account)
    stage.receiver.inbox = Inbox(scene.secret)
    stage.watch.customers = Display.watched(scene)
    for purchase_id in orders:
        stage.wake("purchase.credit", purchase_id)
    # While the workers credit the orders.
    stage.gateway.start(folder, api_url, scene.account_id)
    _wait(stage, lambda: not _uncredited(stage, scene), CREDITED_WITHIN_S)
    watch_over(transaction, scene, stage.spend, stage.sold)
    stage.display.tell(f"{len(scene.customers)} customers, {len(orders)} paid orders credited")
    return scene


def _uncredited(stage: Stage, scene: Scene) -> int:
    with stage.sessions.transaction() as conn:
        values = {"business_id": scene.business_id}
        return int(conn.execute(statements.UNCREDITED, values).scalar_one())


def _send(stage: Stage, scene: Scene, producers: Producers, killer: Killer, plan: Plan) -> float:
    """Send everything and see it drained; return how many seconds that took."""
    started_at = time.monotonic()
    half = len(plan.events) // 2
    buys = True

    def tick() -> bool:
        nonlocal buys
        killer.tick(producers.sent_count, stage.watch.last)
        if buys and producers.sent_count >= half:
            buys = not _buy_more(stage, scene)
        return producers.is_done and killer.is_done and not buys

    limit_s = plan.duration_s + SENT_WITHIN_S + DRAINED_WITHIN_S * len(plan.roles)
    _wait(stage, tick, limit_s)
    stage.display.tell("all traffic is in; waiting until it is drained")
    _wait(stage, lambda: _is_drained(stage, scene), DRAINED_WITHIN_S)
    traffic_s = time.monotonic() - started_at
    _wait(stage, lambda: _is_paid(stage, scene), PAID_WITHIN_S)
    return traffic_s


def _buy_more(stage: Stage, scene: Scene) -> bool:
    """Let customers buy more; return whether that worked."""
    try:
        charges = buy_more(stage.sessions.transaction, scene, stage.spend, stage.sold)
    except STORE_AWAY:
        return False
    for charge_id in charges:
        stage.wake("purchase.charge", charge_id)
    stage.display.tell(f"{len(charges)} customers buy more credit through the payment gateway")
    return True


def _is_paid(stage: Stage, scene: Scene) -> bool:
    """Tell whether every charge has ended, and the gateway has told of each of its payments."""
    with stage.sessions.transaction() as conn:
        charged, told = read_charged(conn, scene), read_told(conn, scene)
    if len(charged) < stage.sold.payments + stage.sold.declined:
        return False
    if any(each.is_open for each in charged) or _uncredited(stage, scene):
        return False
    return told.issuperset(payment.payment_id for payment in stage.gateway.payments())


def _is_drained(stage: Stage, scene: Scene) -> bool:
    sample = stage.watch.last
    counts = sample.counts
    if sample.away or counts.buffered or counts.settled != counts.accepted:
        return False
    return not _uncredited(stage, scene)


def _await_alerts(stage: Stage, scene: Scene) -> None:
    """Wait until the alerts that are due have come: all entries are written by now."""
    inbox = stage.receiver.inbox
    with stage.sessions.transaction() as conn:
        due = sum(map(len, alerts_due(read_entries(conn, scene), scene.rules).values()))
    _wait(stage, lambda: inbox is not None and inbox.received().count >= due, ALERTED_WITHIN_S)


def _wait(stage: Stage, is_done: Callable[[], bool], limit_s: float) -> bool:
    """Look and show until it is done; return whether it was done in time."""
    ends_at = time.monotonic() + limit_s
    while time.monotonic() < ends_at:
        stage.display.update(stage.watch.look())
        try:
            if is_done():
                return True
        except STORE_AWAY:
            pass  # it is being started anew
        time.sleep(TICK_S)
    return False


def _take_stock(
    stage: Stage,
    scene: Scene,
    producers: Producers,
    *,
    kills: Sequence[Kill],
    before: Before,
    traffic_s: float,
) -> Report:
    inbox = stage.receiver.inbox or Inbox(scene.secret)
    redis_kills = sum(kill.role == Victim.REDIS for kill in kills)
    expected = expected_of(scene, producers, stage.sold, redis_kills)
    with stage.sessions.snapshot() as conn:
        found = found_in(
            conn,
            scene,
            before,
            counts=stage.watch.counts(),
            received=inbox.received(),
            payments=stage.gateway.payments(),
            kills=kills,
        )
        timing = timing_of(conn, before, traffic_s)
    lines = reconcile(expected, found)
    return Report(
        lines,
        kills,
        timing,
        as_json(scene, expected, found, lines, timing, over_http=producers.over_http),
    )
