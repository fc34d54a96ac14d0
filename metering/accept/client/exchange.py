"""A served request and its usage: shared by the ASGI and the WSGI middleware.

The rule of the product turns the facts of a finished request into usage. It runs after the
response and cannot break it: a rule that raises is counted and logged.
"""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Final, Protocol

from prometheus_client import Counter

from metering.accept.client.flusher import LogThrottle, log
from metering.accept.client.meter import Meter
from metering.buffer.chunk import Metadata, MetadataValue
from metering.errors import ConfigurationError

RULE_ERRORS: Final = Counter(
    "gullak_meter_rule_errors_total", "Requests whose metering rule or its usage failed."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The event that a rule returns: arguments of `Meter.record`."""

    event_name: str
    customer_id: str
    metadata: Mapping[str, object] | None = None
    event_id: str | None = None
    timestamp: datetime | None = None


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """One request, after its end.

    headers         names in lower case; the last value of a repeated header
    status          None if no response was started
    response_bytes  bytes of the body that were sent
    added           properties set with `usage.add` and `usage.note`
    is_complete     the server took the whole response, and no disconnect was seen
    error           the exception of the handler; CancelledError if it was cancelled
    native          the ASGI scope or the WSGI environ, for all else (route, state …)
    """

    method: str
    path: str
    headers: Mapping[str, str]
    status: int | None
    duration_s: float
    response_bytes: int
    added: Metadata
    is_complete: bool
    error: BaseException | None
    native: Mapping[str, object]


Rule = Callable[[RequestFacts], Usage | Sequence[Usage] | None]


class Recorder(Protocol):
    """Records usage: a `Meter`."""

    def record(
        self,
        event_name: str,
        customer_id: str,
        *,
        event_id: str | None = None,
        timestamp: datetime | str | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        """Keep one event and return its id."""


_added: ContextVar[Metadata | None] = ContextVar("gullak_added", default=None)
_unmetered_log: Final = LogThrottle()
_failure_log: Final = LogThrottle()


class _RequestUsage:
    """Adds properties to the usage of the current request, from inside its handler."""

    def add(self, key: str, quantity: float) -> None:
        """Add `quantity` to the property `key`, for example tokens while they are generated."""
        if (added := self._current(key)) is not None:
            present = added.get(key, 0)
            added[key] = quantity if isinstance(present, str) else present + quantity

    def note(self, key: str, value: MetadataValue) -> None:
        """Set the property `key`, for example the model or the region."""
        if (added := self._current(key)) is not None:
            added[key] = value

    def _current(self, key: str) -> Metadata | None:
        added = _added.get()
        if added is None and _unmetered_log():
            log.warning("usage %r is lost: no metering middleware is around this request", key)
        return added


usage: Final = _RequestUsage()


@dataclass(slots=True)
class Exchange:
    """A request while it is served; the middleware updates it."""

    started_at_s: float = field(default_factory=monotonic)
    status: int | None = None
    response_bytes: int = 0
    is_complete: bool = False
    is_cut_off: bool = False
    error: BaseException | None = None
    added: Metadata = field(default_factory=dict)

    def open(self) -> Token[Metadata | None]:
        """Make this the current request of `usage`."""
        return _added.set(self.added)

    def facts(
        self, method: str, path: str, headers: Mapping[str, str], native: Mapping[str, object]
    ) -> RequestFacts:
        """Return the facts at the end of the request."""
        return RequestFacts(
            method=method,
            path=path,
            headers=headers,
            status=self.status,
            duration_s=monotonic() - self.started_at_s,
            response_bytes=self.response_bytes,
            added=self.added,
            is_complete=self.is_complete,
            error=self.error,
            native=native,
        )


def close_exchange(token: Token[Metadata | None]) -> None:
    """Undo `Exchange.open` if possible."""
    try:
        _added.reset(token)
    except ValueError:
        return  # the server ended the response in another context


def record_by_rule(meter: Recorder, rule: Rule, facts: Callable[[], RequestFacts]) -> None:
    """Apply the rule and record its usage. Never raises, because the response is being sent."""
    try:
        result = rule(facts())
        for event in (result,) if isinstance(result, Usage) else result or ():
            meter.record(
                event.event_name,
                event.customer_id,
                event_id=event.event_id,
                timestamp=event.timestamp,
                metadata=event.metadata,
            )
    except Exception:  # noqa: BLE001 - code of the product, which must not break its response
        RULE_ERRORS.inc()
        if _failure_log():
            log.exception("a request was not metered: its rule, or the usage it gave, failed")


def check_never_blocks(meter: Recorder) -> None:
    """Refuse a meter that can block an event loop. Raises: ConfigurationError if it can."""
    if isinstance(meter, Meter) and meter.on_full == "block":
        raise ConfigurationError('a Meter with on_full="block" would halt the event loop')
