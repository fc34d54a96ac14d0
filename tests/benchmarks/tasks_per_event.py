"""The rate of one Celery task per event, with a real worker."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter, sleep

from celery import Celery

from bed import Bed, Market
from drains import PROCESSES
from worker.settings import environment


def task_per_event_rate(servers: Bed, market: Market, count: int) -> float:
    """Events per second of a worker that charges each event in a task of its own."""
    urls = {
        "DATABASE_URL": servers.config.database_url.get_secret_value(),
        "REDIS_URL": servers.config.redis_url.get_secret_value(),
    }
    app = Celery("naive", broker=servers.config.celery_broker_url())
    done = "SELECT count(*) FROM usage_batches WHERE epoch = 'naive'"
    before = servers.query(done)[0][0]
    with app.connection_for_write() as connection:
        for event in market.events(count):
            arguments = (market.business_id, list(event))
            app.send_task("naive.charge", args=arguments, connection=connection)
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "naive", "worker", "-c", str(PROCESSES),
         "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"],
        env=environment(**urls),
        cwd=Path(__file__).parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        started, first = None, 0
        while (found := servers.query(done)[0][0] - before) < count:
            if started is None and found:
                started, first = perf_counter(), found
            sleep(0.05)
        return (count - first) / (perf_counter() - (started or 0))
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
