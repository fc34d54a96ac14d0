"""The task base: names are explicit, transient failures retry, follow-ups go out after the body."""

import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final, ParamSpec, cast

import structlog
from celery import Task

from worker.app import app
from worker.broker import BrokerAwayError, send
from worker.faults import faults, is_fault
from worker.metrics import TASK_RUNS, TASK_SECONDS

P = ParamSpec("P")
Report = dict[str, int]

log = structlog.get_logger("gullak.task")

RETRY_MAX: Final = 3
RETRY_DELAY_S: Final = 1
SOON_S: Final = 10


def task(name: str) -> Callable[[Callable[P, Report]], Task[P, None]]:
    """Register `body` as the Celery task `name`.

    The body returns counts, which are logged when any is not zero. What fails by a fault of the
    database's server, or of an absent Redis, is left to the next sweep, which finds the same work
    again; where none comes soon it is tried again a few times. No traceback of a task would say
    more than the one line about the server. A message is only ever a wake-up.
    """

    def register(body: Callable[P, Report]) -> Task[P, None]:
        def run(self: Task[Any, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
            structlog.contextvars.bind_contextvars(task=name, task_id=self.request.id)
            try:
                _observe(name, body, *args, **kwargs)
            except BrokerAwayError as error:
                log.warning("the next sweep does it", cause=str(error))
            except Exception as error:
                if not is_fault(error):
                    raise
                faults().note(name, error)
                if _is_seldom(name) and self.request.retries < RETRY_MAX:
                    raise self.retry(countdown=RETRY_DELAY_S, max_retries=RETRY_MAX) from error
            finally:
                structlog.contextvars.clear_contextvars()

        run.__name__ = body.__name__
        run.__doc__ = body.__doc__
        return cast("Task[P, None]", app.task(name=name, bind=True)(run))

    return register


def _is_seldom(name: str) -> bool:
    """Tell whether nobody asks for a task again within a few seconds.

    Retries of the others would only pile up while a server fails, and be in the way of the work
    when it is back.
    """
    periodic = app.conf.beat_schedule.get(name)
    return periodic is not None and periodic["schedule"] > SOON_S


def _observe(name: str, body: Callable[P, Report], *args: P.args, **kwargs: P.kwargs) -> None:
    with TASK_SECONDS.labels(name).time():
        try:
            report = body(*args, **kwargs)
        except Exception:
            TASK_RUNS.labels(name, "failed").inc()
            raise
    TASK_RUNS.labels(name, "done").inc()
    if any(report.values()):
        faults().clear(name)
        log.info("done", **report)


_last_woken: dict[str, float] = {}


def wake_at_most(name: str, every_s: float) -> None:
    """Wake a task, unless this process did so within `every_s`: its sweep comes anyway."""
    now = monotonic()
    if now - _last_woken.get(name, -every_s) >= every_s:
        _last_woken[name] = now
        wake(name)


def wake(name: str, *args: int | str) -> None:
    """Send a wake-up, outside any transaction. It may be lost: the next sweep sends it again.

    Raises:
        BrokerAwayError: it did not go out; a task that lets it pass is left to its next sweep.

    """
    send(app, name, *args)


def shuffled(shards: Sequence[int]) -> list[int]:
    """Return shards in any order: if wake-ups expire unread, they are not always the same ones."""
    return random.sample(shards, len(shards))
