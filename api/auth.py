"""Who calls: the key of a request, remembered for a few seconds, and the scope that a route asks.

Keys are checked before a body is read or parsed. A known key is trusted for `fresh_s` without
Postgres, so ingestion does not depend on it; while Postgres is away, for `stale_s`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from hashlib import sha256
from threading import Lock
from time import monotonic
from typing import Annotated, Final, NamedTuple

from anyio import CapacityLimiter, move_on_after, to_thread
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from sqlalchemy import Connection
from starlette.types import Scope

from api.failed_keys import FailedKeys
from metering.access.keys import Principal, authenticate, note_use, prefix_of
from metering.db import DATABASE_ERRORS, is_server_fault
from metering.errors import ForbiddenError, LedgerUnavailableError, UnauthorizedError
from metering.ids import BusinessId

KEYS_MAX: Final = 10_000
# Keys that are looked up at the same time, in threads and over connections of their own.
LOOK_UPS: Final = 4
# How long a look-up may take. A request with a known key does not wait longer for Postgres.
KEY_WAIT_S: Final = 5.0
KNOWN_WAIT_S: Final = 1.0
NOBODY: Final = BusinessId("")

Tenant = Callable[[BusinessId], AbstractContextManager[Connection]]

bearer = HTTPBearer(auto_error=False, description="An API key of a business: `gk_…`.")


class _Known(NamedTuple):
    """Whose key it is; when it was looked up, and when Postgres was last asked for it."""

    principal: Principal
    seen_at_s: float
    asked_at_s: float


class KeyRing:
    """The keys seen lately, by their hash: no key is kept in memory. Thread-safe."""

    def __init__(self, tenant: Tenant, *, fresh_s: float, stale_s: float) -> None:
        self._tenant = tenant
        self._fresh_s = fresh_s
        self._stale_s = stale_s
        self._lock = Lock()
        self._known: dict[bytes, _Known] = {}
        self._nobodys: dict[bytes, float] = {}
        self._failed = FailedKeys()
        self._threads = CapacityLimiter(LOOK_UPS)

    def fresh(self, key: str) -> Principal | None:
        """Return whose key it is if that was looked up a moment ago; never waits."""
        known = self._known.get(_digest(key))
        if known is None or monotonic() - known.asked_at_s >= self._fresh_s:
            return None
        return known.principal

    async def find(self, key: str, address: str) -> Principal:
        """Return whose key it is, which a client at `address` gave.

        Raises:
            UnauthorizedError: nobody's.
            TooManyFailedKeysError: the client gave too many such keys.
            LedgerUnavailableError, DBAPIError: see `principal`.

        """
        prefix_of(key)
        digest = _digest(key)
        if monotonic() - self._nobodys.get(digest, -self._fresh_s) < self._fresh_s:
            raise UnauthorizedError
        wait_s = KNOWN_WAIT_S if digest in self._known else KEY_WAIT_S
        with move_on_after(wait_s):
            return await to_thread.run_sync(
                self.principal, key, address, limiter=self._threads, abandon_on_cancel=True
            )
        return self._stale(digest, LedgerUnavailableError())

    def principal(self, key: str, address: str = "") -> Principal:
        """Return whose key it is.

        Raises:
            UnauthorizedError: nobody's.
            TooManyFailedKeysError: too many such keys came from `address`.
            DBAPIError: the database fails, and the key was not seen for too long.

        """
        if (fresh := self.fresh(key)) is not None:
            return fresh
        digest = _digest(key)
        if digest not in self._known:
            self._failed.check(address)
        try:
            with self._tenant(NOBODY) as conn:
                principal = authenticate(conn, key)
        except UnauthorizedError:
            self._failed.count(address)
            self._forget(digest)
            raise
        except DATABASE_ERRORS as error:
            if not is_server_fault(error):
                raise
            return self._stale(digest, error)
        self._keep(digest, principal)
        # `last_used_at` is for people only: a server that cannot write still answers reads.
        with suppress(*DATABASE_ERRORS), self._tenant(principal.business_id) as conn:
            note_use(conn, principal)
        return principal

    def _stale(self, digest: bytes, error: Exception) -> Principal:
        """Trust a key that was seen not too long ago; the others need not ask in the next moment.

        Raises:
            Exception: `error`, because it was not.

        """
        now = monotonic()
        with self._lock:
            known = self._known.get(digest)
            if known is None or now - known.seen_at_s >= self._stale_s:
                raise error
            self._known[digest] = known._replace(asked_at_s=now)
        return known.principal

    def _keep(self, digest: bytes, principal: Principal) -> None:
        now = monotonic()
        with self._lock:
            if len(self._known) >= KEYS_MAX:
                self._known.clear()
            self._known[digest] = _Known(principal, now, now)

    def _forget(self, digest: bytes) -> None:
        with self._lock:
            self._known.pop(digest, None)
            if len(self._nobodys) >= KEYS_MAX:
                self._nobodys.clear()
            self._nobodys[digest] = monotonic()


def _digest(key: str) -> bytes:
    return sha256(key.encode(errors="surrogateescape")).digest()


def key_of(authorization: str) -> str:
    """Return the key in an `Authorization` header.

    Raises:
        UnauthorizedError: there is none.

    """
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise UnauthorizedError
    return key.strip()


async def _allowed(
    scopes: SecurityScopes,
    request: Request,
    _declared: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Principal:
    """Return the caller, whom `api.middleware` has found, if its key has the scopes of the route.

    Async though nothing is awaited: a plain function would be run in a thread of its own, which
    takes longer than all that it does.
    """
    return check_scope(request.scope, *scopes.scopes)


def check_scope(scope: Scope, *needed: str) -> Principal:
    """Return the caller of the request with this ASGI scope.

    Raises:
        UnauthorizedError: the edge has found none.
        ForbiddenError: the caller's key lacks a scope that is needed.

    """
    principal = scope.get("principal")
    if not isinstance(principal, Principal):
        raise UnauthorizedError
    for name in needed:
        if name not in principal.scopes:
            raise ForbiddenError(name)
    return principal


Ingester = Annotated[Principal, Security(_allowed, scopes=["ingest"])]
Reader = Annotated[Principal, Security(_allowed, scopes=["read"])]
Writer = Annotated[Principal, Security(_allowed, scopes=["write"])]
