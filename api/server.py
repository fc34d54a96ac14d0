"""`python -m api.server --port N`: one process that serves the API until SIGTERM or SIGINT."""

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

# An idle connection is closed after this time.
KEEP_ALIVE_S: Final = 75
GRACE_S: Final = 10

log = structlog.get_logger("gullak.api")


def main() -> None:
    """Run the server."""
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
    # uvicorn raises the signal again after a clean stop: exit with 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    app = create_app(settings())
    tune_process()
    uvicorn.Server(server_config(app, given.host, given.port)).run()


def server_config(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    """Return the configuration of uvicorn."""
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
