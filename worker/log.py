"""structlog: JSON lines for machines, colours for a terminal; never a secret."""

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
    # One line per request or message says nothing at the rates this runs at.
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def log_to_stderr() -> None:
    """Keep what a command logs apart from what it prints, if logging is not set up otherwise."""
    # The factory and not `is_configured`: a captured log leaves the defaults behind as configured.
    if isinstance(structlog.get_config()["logger_factory"], structlog.PrintLoggerFactory):
        # Whatever stderr is by then.
        structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def _rendering(*, as_json: bool) -> list[Processor]:
    # Tracebacks without local variables: secrets and what customers have sent are among them.
    if as_json:
        renderer: Processor = structlog.processors.JSONRenderer()
        return [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            renderer,
        ]
    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]


_last_said: dict[str, float] = {}


def is_news(cause: str) -> bool:
    """Tell whether this process has not said `cause` for a minute; it counts as said then."""
    now = monotonic()
    if now - _last_said.get(cause, -NEWS_EVERY_S) < NEWS_EVERY_S:
        return False
    _last_said[cause] = now
    return True


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Blank the values of keys that name a secret."""
    for key in event:
        if any(name in key.lower() for name in _SECRET_NAMES):
            event[key] = "***"
    return event
