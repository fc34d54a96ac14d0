"""Requests that are sent again: which ones may be, and how the answer to a repeat says so.

If the outcome of a request is unknown, `x-should-retry: false` tells the client not to repeat it.
A repeatable request does not get that header: a second one changes nothing.
"""

from typing import Annotated, Final

from fastapi import Depends, Request, Response


class Idempotency:
    """The part of a request and its response that concerns repeats."""

    def __init__(self, request: Request, response: Response) -> None:
        self._request = request
        self._response = response

    def by(self, key: str | None) -> None:
        """Make the request repeatable if it brings a key."""
        self._request.state.repeatable = key is not None

    def note(self, *, replayed: bool) -> None:
        """Say in the response whether an earlier request did the work."""
        if replayed:
            self._response.headers["Idempotent-Replayed"] = "true"


async def _idempotency(request: Request, response: Response) -> Idempotency:
    return Idempotency(request, response)


async def note_repeatable(request: Request) -> None:
    """Make the request repeatable, though it brings no key."""
    request.state.repeatable = True


Idempotent = Annotated[Idempotency, Depends(_idempotency)]
REPEATABLE: Final = (Depends(note_repeatable),)
