"""How a function becomes a task, what happens when it fails, and how tasks are woken."""

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

    The body returns counts. They are logged if one of them is not zero. If Postgres or Redis is at
    fault, the next sweep finds the same work again. A task without a sweep soon is retried a few
    times. Such a fault is logged without a traceback: it is the server's, not the task's.
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
    """Tell whether nothing wakes a task again within a few seconds.

    Retries of the other tasks would pile up while a server fails, and delay the work afterwards.
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
    """Wake a task, unless this process has done so within `every_s`: its sweep comes anyway."""
    now = monotonic()
    if now - _last_woken.get(name, -every_s) >= every_s:
        _last_woken[name] = now
        wake(name)


def wake(name: str, *args: int | str) -> None:
    """Send a wake-up, outside any transaction. If it is lost, the next sweep sends it again.

    Raises: BrokerAwayError if it did not go out. A task need not catch it.
    """
    send(app, name, *args)


def shuffled(shards: Sequence[int]) -> list[int]:
    """Return shards in random order, so that not always the same wake-ups expire unread."""
    return random.sample(shards, len(shards))
