"""One served request and the usage it makes: what the ASGI and the WSGI middleware share.

The product gives a rule: facts of a finished request in, usage out. It runs after the response,
whatever became of it, and cannot break it: a rule that raises is counted and logged.
"""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Final, Protocol

from prometheus_client import Counter

from metering.accept.client.flusher import Rarely, log
from metering.accept.client.meter import Meter
from metering.buffer.chunk import Metadata, MetadataValue
from metering.errors import ConfigurationError

RULE_ERRORS: Final = Counter(
    "gullak_meter_rule_errors_total", "Requests whose metering rule or its usage failed."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a rule returns per event: the arguments of `Meter.record`."""

    event_name: str
    customer_id: str
    metadata: Mapping[str, object] | None = None
    event_id: str | None = None
    timestamp: datetime | None = None


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """One request, after its end.

    headers         lower-case names; of a repeated header the last
    status          None if no response was started
    response_bytes  of the body, as far as it was sent
    added           what the handler said with `usage.add` and `usage.note`
    is_complete     the whole response was handed to the server, and no disconnect was seen
    error           what the handler raised; a cancelled handler has the CancelledError
    native          the ASGI scope or the WSGI environ, for what is not here (route, state …)
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
    """What usage is recorded with: a `Meter`."""

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
_unmetered: Final = Rarely()
_failing: Final = Rarely()


class _RequestUsage:
    """What a handler says about the request that it serves: `from metering.accept import usage`."""

    def add(self, key: str, quantity: float) -> None:
        """Add `quantity` to the request's property `key`: tokens, as they are generated."""
        if (added := self._current(key)) is not None:
            present = added.get(key, 0)
            added[key] = quantity if isinstance(present, str) else present + quantity

    def note(self, key: str, value: MetadataValue) -> None:
        """Set the request's property `key`: the model, the region."""
        if (added := self._current(key)) is not None:
            added[key] = value

    def _current(self, key: str) -> Metadata | None:
        added = _added.get()
        if added is None and _unmetered():
            log.warning("usage %r is lost: no metering middleware is around this request", key)
        return added


usage: Final = _RequestUsage()


@dataclass(slots=True)
class Exchange:
    """A request while it is served; both middlewares write into it as they see things happen."""

    started_at_s: float = field(default_factory=monotonic)
    status: int | None = None
    response_bytes: int = 0
    is_complete: bool = False
    is_cut_off: bool = False
    error: BaseException | None = None
    added: Metadata = field(default_factory=dict)

    def open(self) -> Token[Metadata | None]:
        """Make this request the one that `usage` speaks of."""
        return _added.set(self.added)

    def facts(
        self, method: str, path: str, headers: Mapping[str, str], native: Mapping[str, object]
    ) -> RequestFacts:
        """Return what is known at the end."""
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
    """End what `Exchange.open` began, where that is still possible."""
    try:
        _added.reset(token)
    except ValueError:
        return  # the server ends a response in another context than it began it


def record_by_rule(meter: Recorder, rule: Rule, facts: Callable[[], RequestFacts]) -> None:
    """Ask the rule and record what it says. Never raises: the response is already on its way."""
    try:
        said = rule(facts())
        for one in (said,) if isinstance(said, Usage) else said or ():
            meter.record(
                one.event_name,
                one.customer_id,
                event_id=one.event_id,
                timestamp=one.timestamp,
                metadata=one.metadata,
            )
    except Exception:  # noqa: BLE001 - a product's own code, which must not break its response
        RULE_ERRORS.inc()
        if _failing():
            log.exception("a request was not metered: its rule, or the usage it gave, failed")


def check_never_blocks(meter: Recorder) -> None:
    """Refuse a meter that could halt an event loop.

    Raises:
        ConfigurationError: its `on_full` is "block".

    """
    if isinstance(meter, Meter) and meter.on_full == "block":
        raise ConfigurationError('a Meter with on_full="block" would halt the event loop')
