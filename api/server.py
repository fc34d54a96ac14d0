"""`python -m api.server --port N`: one process that serves the API until it is told to stop."""

import argparse
import signal
import sys
from typing import Final

import structlog
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.protocol import BoundedProtocol
from metering.errors import ConfigurationError
from worker.context import check_buffer
from worker.log import setup_logging
from worker.settings import CONFIGURATION_EXIT, settings, settings_or_exit
from worker.tuning import tune_process

# A client that says nothing for this long is closed.
KEEP_ALIVE_S: Final = 75
GRACE_S: Final = 10

log = structlog.get_logger("gullak.api")


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(prog="api.server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    given = parser.parse_args()
    setup_logging(settings_or_exit())
    try:
        check_buffer(settings())
    except ConfigurationError as error:
        log.critical("cannot start", cause=error.message)
        sys.exit(CONFIGURATION_EXIT)
    # The server raises the signal once more when it has stopped: that was no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    app = create_app(settings())
    tune_process()
    uvicorn.Server(server_config(app, given.host, given.port)).run()


def server_config(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    """Return how the application is served."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


if __name__ == "__main__":
    main()
