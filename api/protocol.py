"""HTTP/1.1 with limits on what a client without a key can send.

uvicorn bounds neither the size of a head (request line and headers) nor the time in which it comes.
Its parser copies an unfinished header once for each packet: one header of 100 MB stopped every
request of the process for 18 s. A trailer after a body in chunks took 75 s.
"""

from asyncio import TimerHandle, Transport
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX: Final = 64 * 1024
HEADERS_MAX: Final = 100
# The usual limit is 1,024 open files per process, and the stores need some of them.
CONNECTIONS_MAX: Final = 800
# From the start of a connection or request to the end of its head.
HEAD_TIMEOUT_S: Final = 20.0
# From the end of the head to the end of the body.
BODY_TIMEOUT_S: Final = 60.0

_BAD_REQUEST: Final = (400, "Bad Request")
_LATE: Final = (408, "Request Timeout")
_HEAD_TOO_LARGE: Final = (431, "Request Header Fields Too Large")
_FULL: Final = (503, "Service Unavailable")


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431 to a head that is too large and 408 to a request that does not come in time."""

    _is_in_head = False
    _is_kept = True
    _kept_bytes = 0
    _whole_at_s = 0.0
    _refusal = _BAD_REQUEST
    _deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._whole_at_s = self.loop.time()
        self._expect_within(HEAD_TIMEOUT_S)
        if len(self.connections) > CONNECTIONS_MAX and not self._make_room():
            self._refuse(_FULL)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and count it while the parser keeps all of it.

        It keeps an unfinished head, and the trailers and chunk extensions of a body.
        """
        self._is_kept = True
        super().data_received(data)
        self._kept_bytes = self._kept_bytes + len(data) if self._is_kept else 0
        if self.transport.is_closing():
            return
        if self._kept_bytes > HEAD_BYTES_MAX:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._is_kept and self._deadline is None:
            # Empty lines between requests begin none.
            self._expect_within(HEAD_TIMEOUT_S)

    def on_message_begin(self) -> None:
        """Wait for the head."""
        super().on_message_begin()
        self._is_in_head, self._is_kept = True, False
        if self._deadline is None:
            self._expect_within(HEAD_TIMEOUT_S)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or end the parsing with an error: its handler sends the refusal."""
        if len(self.headers) >= HEADERS_MAX or len(value) > HEAD_BYTES_MAX:
            self._refusal = _HEAD_TOO_LARGE
            raise ValueError(_HEAD_TOO_LARGE[1])
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Wait for the body."""
        self._is_in_head = self._is_kept = False
        self._expect_within(BODY_TIMEOUT_S)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand on a part of the body."""
        self._is_kept = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for nothing until the next request begins."""
        self._is_kept = False
        self._whole_at_s = self.loop.time()
        self._expect_nothing()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Send the refusal of what cannot be parsed, without repeating the parser's words."""
        del msg
        self._refuse(self._refusal)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: the request is served as if it had not asked for an upgrade."""

    def _make_room(self) -> bool:
        """Close the connection that is without a complete request for longest, if there is one."""
        idle = [
            other
            for other in self.connections
            if isinstance(other, BoundedProtocol)
            and other is not self
            and not (other.is_at_work() or other.transport.is_closing())
        ]
        if idle:
            min(idle, key=lambda other: other._whole_at_s).transport.close()  # noqa: SLF001
        return bool(idle)

    def is_at_work(self) -> bool:
        """Tell whether a request is not answered yet."""
        return not getattr(self.cycle, "response_complete", True)

    def _expect_within(self, seconds: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(seconds, self._be_late)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _be_late(self) -> None:
        self._deadline = None
        if self.flow.read_paused or (self.is_at_work() and not self.cycle.more_body):
            # The client waits for us: the next request is not read before this one is answered.
            self._expect_within(HEAD_TIMEOUT_S)
        else:
            self._refuse(_LATE)

    def _refuse(self, status: tuple[int, str]) -> None:
        """Answer, unless an answer has begun, and close the connection."""
        has_answered = getattr(self.cycle, "response_started", False)
        if self._is_in_head or not has_answered:
            head = "HTTP/1.1 {} {}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            self.transport.write(head.format(*status).encode())
        self.transport.close()
