"""The Celery application: `celery -A worker.app worker`."""

from celery import Celery
from celery.signals import setup_logging as celery_setup_logging
from celery.signals import worker_process_init

from worker.log import setup_logging
from worker.settings import settings, settings_or_exit
from worker.tuning import tune_process

app = Celery("gullak", include=["worker.watchdog"])
app.config_from_object("celeryconfig")
app.conf.update({"broker_url": settings_or_exit().celery_broker_url()})


@celery_setup_logging.connect
def _own_the_logging(**_arguments: object) -> None:
    """Keep Celery from installing its own handlers."""
    setup_logging(settings())


@worker_process_init.connect
def _tune(**_arguments: object) -> None:
    """Tune each process of the pool, after the fork."""
    tune_process()
