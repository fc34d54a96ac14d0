"""The route of a meter that may not reach Redis: it calls `POST /events/ingest`.

Only a 200 with the count of all events releases a request. A 422 of our API names the events that
it refuses; the flusher sends the others again. After any other answer, and after none, all events
stay pending and are sent again with the same ids.

`http.client` needs no further package. Measured with five properties: 16 µs of CPU for each event,
`record` included, as over Redis.
"""

import ssl
from collections.abc import Sequence
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from time import monotonic
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import orjson

from metering.accept.client.flusher import Link, Route
from metering.accept.client.pending import Waiting
from metering.accept.event import AcceptLimits
from metering.buffer.chunk import BufferedEvent
from metering.errors import (
    ApiUnavailableError,
    ConfigurationError,
    FieldProblem,
    ForbiddenError,
    InvalidInputError,
    UnauthorizedError,
)
from metering.ids import BusinessId

# The limit that proxies have by default; the API takes 8 MiB. Usual batches have 0.15 MB.
BODY_BYTES_MAX: Final = 1_000_000
EVENTS_MAX: Final = AcceptLimits().request_events_max
# What an event takes in a body beyond its values: the names of its fields.
FIELD_NAMES_BYTES: Final = 80
ANSWER_BYTES_MAX: Final = 1 << 20
RETRY_AFTER_MAX_S: Final = 60.0
TIMEOUT_MIN_S: Final = 0.001

_OK: Final = 200
_TOO_LARGE: Final = 413
_REFUSAL_CODES: Final = {(400, "DUPLICATE_EVENT_ID"), (422, "INVALID_REQUEST_BODY")}


def http_route(url: str, key: str, timeout_s: float) -> Route:
    """Return the route. Raises: ConfigurationError if the address or the key cannot be used."""
    try:
        address = urlsplit(url)
        host = (address.hostname or "").encode("idna")
        _ = address.port
    except ValueError as error:
        raise ConfigurationError(f"the address of the API cannot be read: {error}") from error
    extra = address.query or address.fragment or address.username or address.password
    if address.scheme not in {"http", "https"} or not host or extra:
        raise ConfigurationError("the address of the API is not like https://host/prefix")
    if not key.strip() or not key.isascii() or not key.isprintable():
        raise ConfigurationError("the API key is blank, or holds a character that no key holds")
    # A lost connection is tried once more.
    return Route(partial(_http_link, address, key.strip(), timeout_s), requests_of, 2 * timeout_s)


def requests_of(batch: list[Waiting]) -> list[list[Waiting]]:
    """Return the requests for a batch: bounded, no id twice in one, and one kind of time in each.

    Events keep their order, but for those with a time from the program: they come first.
    """
    requests: list[list[Waiting]] = []
    ids: set[str] = set()
    size_bytes = 0
    for waiting in sorted(batch, key=lambda one: not one.event.time_given):
        event, cost = waiting.event, waiting.size_bytes + FIELD_NAMES_BYTES
        size_bytes += cost
        if (
            not requests
            or size_bytes > BODY_BYTES_MAX
            or len(requests[-1]) >= EVENTS_MAX
            or requests[-1][-1].event.time_given != event.time_given
            or event.event_id in ids
        ):
            requests.append([])
            ids, size_bytes = set(), cost
        requests[-1].append(waiting)
        ids.add(event.event_id)
    return requests


def _http_link(address: SplitResult, key: str, timeout_s: float) -> Link:
    client = _Ingest(address, key, timeout_s)
    return Link(client.append, lambda _business_id: {}, client.close)


class _Ingest:
    """One connection to the API, kept open; for one thread."""

    def __init__(self, address: SplitResult, key: str, timeout_s: float) -> None:
        host = address.hostname or ""
        self._connection = (
            HTTPConnection(host, address.port, timeout=timeout_s)
            if address.scheme == "http"
            else HTTPSConnection(
                host, address.port, timeout=timeout_s, context=ssl.create_default_context()
            )
        )
        self._path = f"{address.path.rstrip('/')}/events/ingest"
        self._timeout_s = timeout_s
        self._headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "gullak-meter",
        }

    def append(self, _business_id: BusinessId, events: Sequence[BufferedEvent]) -> None:
        """Send the events of one request.

        Raises:
            InvalidInputError: the API refuses events (`events[3].…`), or the request as a whole.
            UnauthorizedError, ForbiddenError: the key is not known, or may not ingest.
            ApiUnavailableError: any other answer, or none. The events may have been taken.

        """
        body = orjson.dumps({"events": [_fields(event) for event in events]})
        # A time that the meter set is not part of what tells a repetition from a conflict.
        times = {"X-Time-Given": "true" if events[0].time_given else "false"}
        status, retry_after_s, answer = self._post(body, {**self._headers, **times})
        if status != _OK:
            raise _problem_of(status, retry_after_s, answer)
        if answer.get("ingested_count") != len(events):
            raise ApiUnavailableError("the answer does not count the events: is this the API?")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, float, dict[str, Any]]:
        was_open = self._connection.sock is not None
        try:
            return self._exchange(body, headers)
        except ConnectionError as error:
            self._connection.close()
            if not was_open:
                raise _unreachable(error) from error
        except (OSError, HTTPException, ValueError) as error:
            self._connection.close()
            raise _unreachable(error) from error
        # The server had closed an idle connection.
        return self._post(body, headers)

    def _exchange(self, body: bytes, headers: dict[str, str]) -> tuple[int, float, dict[str, Any]]:
        """Send a request and read its answer, together within the timeout."""
        connection, until_s = self._connection, monotonic() + self._timeout_s
        if connection.sock is None:
            connection.connect()
        _limit(connection, until_s)
        lost: ConnectionError | None = None
        try:
            connection.request("POST", self._path, body, headers)
        except ConnectionError as error:
            lost = error  # a server that refuses a body by its length answers, and reads no further
        _limit(connection, until_s)
        try:
            response = connection.getresponse()
        except HTTPException as error:
            raise lost or error from error
        content = response.read(ANSWER_BYTES_MAX)
        if lost or not response.isclosed():
            connection.close()
        return response.status, _seconds(response.getheader("Retry-After")), _parsed(content)


def _limit(connection: HTTPConnection, until_s: float) -> None:
    # http.client forgets the socket when a request fails.
    if connection.sock is not None:
        connection.sock.settimeout(max(TIMEOUT_MIN_S, until_s - monotonic()))


def _fields(event: BufferedEvent) -> dict[str, object]:
    return {
        "event_id": event.event_id,
        "customer_id": event.customer_id,
        "event_name": event.event_name,
        "timestamp": event.event_at,
        "metadata": event.metadata,
    }


def _seconds(retry_after: str | None) -> float:
    """Return the seconds of a `Retry-After`: 0 if there are none, as in a date."""
    text = (retry_after or "").strip()
    return min(float(text), RETRY_AFTER_MAX_S) if text.isascii() and text.isdigit() else 0.0


def _parsed(content: bytes) -> dict[str, Any]:
    """Return an object of JSON; an empty one for anything else, such as the page of a proxy."""
    try:
        parsed = orjson.loads(content)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _unreachable(error: Exception) -> ApiUnavailableError:
    return ApiUnavailableError(f"{type(error).__name__}: {error}")


def _problem_of(status: int, retry_after_s: float, answer: dict[str, Any]) -> Exception:
    """Return the error for an answer other than 200."""
    if status == 401:  # noqa: PLR2004 - HTTP
        return UnauthorizedError()
    if status == 403:  # noqa: PLR2004 - HTTP
        return ForbiddenError("ingest")
    if status == _TOO_LARGE:
        return InvalidInputError(FieldProblem("body", "is too large for the API"))
    message = str(answer.get("message", ""))[:500]
    # A refusal that is not in the words of our API is a proxy's, and says nothing on the events.
    if (status, answer.get("code")) in _REFUSAL_CODES:
        return InvalidInputError(*_problems(answer) or [FieldProblem("events", message)])
    return ApiUnavailableError(f"it answered {status}: {message}", retry_after_s)


def _problems(answer: dict[str, Any]) -> list[FieldProblem]:
    """Return the refused fields. A repeated id is no fault of the event that is named."""
    if answer["code"] == "DUPLICATE_EVENT_ID":
        return []
    details = answer.get("details")
    return [
        FieldProblem(str(each.get("field")), str(each.get("reason")))
        for each in (details if isinstance(details, list) else [])
        if isinstance(each, dict)
    ]
