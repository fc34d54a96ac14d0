"""`python -m worker.demo.simulator`: serve on this machine only, until it is stopped."""

import json
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from worker.demo.simulator.notifier import Notifier
from worker.demo.simulator.role import SimulatorKeys, simulator_url
from worker.demo.simulator.server import Simulator
from worker.demo.simulator.store import Store
from worker.local.port import HOST


def serve(
    *,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")],
    data: Annotated[Path, typer.Option(help="Its SQLite file, made if there is none.")],
    secrets: Annotated[Path, typer.Option(help="JSON: api_key, webhook_secret.")],
    webhook_url: Annotated[str | None, typer.Option(help="Where its events are sent.")] = None,
    pending_s: Annotated[
        float | None, typer.Option(min=0, help="When pm_pending succeeds. Default: never.")
    ] = None,
) -> None:
    """Serve the part of Stripe's API that Gullak uses. Nobody is charged."""
    keys = SimulatorKeys(**json.loads(secrets.read_text()))
    store = Store(data)
    notifier = Notifier(store, webhook_url, keys.webhook_secret)
    notifier.start()
    url = simulator_url(port)
    simulator = Simulator(store, url, keys.api_key, pending_s, notifier.wake)
    uvicorn.run(
        simulator.app(),
        host=HOST,
        port=port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    # A traceback with the values of variables would print the secrets.
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(serve)
    app()
