"""The watchdogs of a worker, and its sign of life. Loaded by the worker and by beat."""

import sys
from functools import partial
from threading import Event, Thread
from typing import Final, Protocol

import structlog
from celery import bootsteps
from celery.signals import beat_init, worker_init
from celery.worker import state
from celery.worker.consumer import Connection, Consumer
from redis import Redis

from metering.errors import ConfigurationError
from worker.app import app
from worker.context import check_buffer, open_buffer
from worker.faults import read_board
from worker.health import postgres_answers, serve_health
from worker.metrics import metrics_text
from worker.relief import drain_here
from worker.settings import CONFIGURATION_EXIT, Settings, settings
from worker.task import wake
from worker.watchdog.consumer import (
    PERIOD_S,
    AliveStep,
    AwaitRoom,
    ConsumerWatchdog,
    end_process,
    observe,
    oldest_messages,
)
from worker.watchdog.drain import DRAIN, DrainWatchdog, StandIn

SWEEP: Final = "debit.sweep"

log = structlog.get_logger("gullak.watchdog")


@worker_init.connect
@beat_init.connect
def _refuse_to_start(**_arguments: object) -> None:
    """End a process that cannot work as it is configured, before it takes or sends a message."""
    try:
        check_buffer(settings())
    except ConfigurationError as error:
        log.critical("cannot start", cause=error.message)
        sys.exit(CONFIGURATION_EXIT)


class Ticker(Protocol):
    """Work for a thread of its own."""

    def tick(self) -> None:
        """Do it once."""


def run(ticker: Ticker, stop: Event) -> None:
    """Tick every second until `stop`; a failure is logged once, not once a second."""
    failing = False
    while not stop.wait(PERIOD_S):
        try:
            ticker.tick()
            failing = False
        except Exception as error:  # noqa: BLE001 - a second later it may work
            if not failing:
                log.warning("the watchdog cannot look", cause=type(error).__name__)
            failing = True


class WatchdogStep(bootsteps.StartStopStep):
    """Start the threads before the broker is reached, because it may be away or full."""

    is_started = False

    def start(self, consumer: Consumer) -> None:
        """Start them once: a later reconnection finds them running."""
        if not WatchdogStep.is_started:
            WatchdogStep.is_started = True
            _start(consumer)

    def stop(self, consumer: Consumer) -> None:
        """Leave them: they end with the process."""


# Each before the next. The connection already takes a lock in the broker.
AwaitRoom.requires = (WatchdogStep,)
Connection.requires = (AwaitRoom,)
app.steps["consumer"] |= {WatchdogStep, AwaitRoom, AliveStep}


def _start(consumer: Consumer) -> None:
    config = settings()
    if config.metrics_port and config.metrics_dir:
        # All interfaces: the scraper of a container is another one. Nothing here is secret.
        serve_health("0.0.0.0", config.metrics_port, partial(metrics_text, config.metrics_dir))  # noqa: S104
    oldest = partial(oldest_messages, consumer.app)
    tickers: list[Ticker] = [ConsumerWatchdog(oldest, observe, _end_unless_stopping)]
    if "debit" in consumer.app.amqp.queues.consume_from:
        tickers.append(_drain_watchdog(config))
    for ticker in tickers:
        Thread(target=run, args=(ticker, Event()), name="watchdog", daemon=True).start()


def _end_unless_stopping(reason: str) -> None:
    """End this process, but not while it stops: then it takes no messages and finishes its work."""
    stopping: tuple[object, object] = (state.should_stop, state.should_terminate)
    if stopping == (None, None):
        end_process(reason)


def postgres_works(config: Settings, redis: "Redis") -> bool:
    """Tell whether Postgres answers, and no drain has just met a fault of it: then all wait."""
    url = config.database_url.get_secret_value()
    return DRAIN not in read_board(redis) and postgres_answers(url)


def _periods_s() -> dict[str, float]:
    """Return how often beat sends each task, without the sweep: the watchdog sweeps itself."""
    schedule = app.conf.beat_schedule.values()
    return {entry["task"]: entry["schedule"] for entry in schedule if entry["task"] != SWEEP}


def _drain_watchdog(config: Settings) -> DrainWatchdog:
    buffer = open_buffer(config)
    return DrainWatchdog(
        buffer,
        stalled_after_s=config.watchdog_s,
        postgres_works=lambda: postgres_works(config, buffer.redis),
        wake_drain=partial(wake, DRAIN),
        drain_here=drain_here,
        stand_in=StandIn(_periods_s(), wake),
        give_up=end_process,
    )
