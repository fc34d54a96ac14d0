"""Logging: JSON lines for machines, text for a terminal, and no secrets."""

import logging
import sys
from time import monotonic
from typing import Final

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.types import EventDict, Processor, WrappedLogger

from worker.settings import Settings

_CHATTY: Final = (
    "httpx",
    "httpcore",
    "celery.app.trace",
    "celery.worker.strategy",
    "celery.beat",
)
NEWS_EVERY_S: Final = 60.0
_SECRET_NAMES: Final = ("secret", "password", "token", "api_key", "authorization", "signature")


def setup_logging(config: Settings) -> None:
    """Send structlog and the standard library's loggers to stderr in one format."""
    as_json = config.log_format == "json" or (
        config.log_format == "auto" and not sys.stderr.isatty()
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=_rendering(as_json=as_json)
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level)
    # At these rates a line per request or message says nothing.
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def log_to_stderr() -> None:
    """Send the log of a command to stderr, apart from its output, unless logging is set up."""
    # Not `is_configured`: after a test has captured the log, the defaults count as configured.
    if isinstance(structlog.get_config()["logger_factory"], structlog.PrintLoggerFactory):
        # `sys.stderr` is read when something is logged: it may be replaced.
        structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def _rendering(*, as_json: bool) -> list[Processor]:
    # Tracebacks without local variables, which hold secrets and data of customers.
    if as_json:
        traceback = ExceptionDictTransformer(show_locals=False)
        render: list[Processor] = [
            structlog.processors.ExceptionRenderer(traceback),
            structlog.processors.JSONRenderer(),
        ]
    else:
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    return [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]


_last_logged: dict[str, float] = {}


def is_news(cause: str) -> bool:
    """Tell whether this process has not logged `cause` for a minute. It counts as logged then."""
    now = monotonic()
    if now - _last_logged.get(cause, -NEWS_EVERY_S) < NEWS_EVERY_S:
        return False
    _last_logged[cause] = now
    return True


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Blank the values of secrets, which are known by the names of their keys."""
    for key in event:
        if any(name in key.lower() for name in _SECRET_NAMES):
            event[key] = "***"
    return event
