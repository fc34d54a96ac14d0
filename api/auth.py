"""Authentication: a short-lived cache of API keys, and the permissions that a route requires.

A key is checked before the body is read. A cached key is trusted for `fresh_s` without Postgres,
so ingestion does not depend on it. While Postgres is down, a key is trusted for `stale_s`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from hashlib import sha256
from threading import Lock
from time import monotonic
from typing import Final, NamedTuple

from anyio import CapacityLimiter, move_on_after, to_thread
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
# How long a look-up may take. A request with a known key does not wait as long for Postgres.
KEY_WAIT_S: Final = 5.0
KNOWN_WAIT_S: Final = 1.0
NOBODY: Final = BusinessId("")

Transactions = Callable[[BusinessId], AbstractContextManager[Connection]]


class _CachedKey(NamedTuple):
    """A key's principal, the last time Postgres confirmed it, and the time of the last look-up."""

    principal: Principal
    confirmed_s: float
    looked_up_s: float


class KeyCache:
    """Keys seen lately, by their hash: no key itself is kept in memory. Thread-safe."""

    def __init__(self, transaction: Transactions, *, fresh_s: float, stale_s: float) -> None:
        self._transaction = transaction
        self._fresh_s = fresh_s
        self._stale_s = stale_s
        self._lock = Lock()
        self._cached: dict[bytes, _CachedKey] = {}
        self._unknown: dict[bytes, float] = {}
        self._failed = FailedKeys()
        self._threads = CapacityLimiter(LOOK_UPS)

    def fresh(self, key: str) -> Principal | None:
        """Return the principal of a key that was looked up a moment ago; never waits."""
        cached = self._cached.get(_digest(key))
        if cached is None or monotonic() - cached.looked_up_s >= self._fresh_s:
            return None
        return cached.principal

    async def find(self, key: str, address: str) -> Principal:
        """Return the principal of a key that a client at `address` sent.

        Raises: UnauthorizedError if the key is unknown; TooManyFailedKeysError if the address sent
        too many such keys; LedgerUnavailableError, DBAPIError as `principal`.
        """
        prefix_of(key)
        digest = _digest(key)
        if monotonic() - self._unknown.get(digest, -self._fresh_s) < self._fresh_s:
            raise UnauthorizedError
        wait_s = KNOWN_WAIT_S if digest in self._cached else KEY_WAIT_S
        with move_on_after(wait_s):
            return await to_thread.run_sync(
                self.principal, key, address, limiter=self._threads, abandon_on_cancel=True
            )
        return self._stale(digest, LedgerUnavailableError())

    def principal(self, key: str, address: str = "") -> Principal:
        """Return the principal of a key, from the cache or from Postgres.

        Raises: UnauthorizedError, TooManyFailedKeysError as `find`; DBAPIError if the database
        fails and the key was not confirmed within `stale_s`.
        """
        if (fresh := self.fresh(key)) is not None:
            return fresh
        digest = _digest(key)
        if digest not in self._cached:
            self._failed.check(address)
        try:
            with self._transaction(NOBODY) as conn:
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
        # Only people read `last_used_at`: a server that cannot write still serves reads.
        with suppress(*DATABASE_ERRORS), self._transaction(principal.business_id) as conn:
            note_use(conn, principal)
        return principal

    def _stale(self, digest: bytes, error: Exception) -> Principal:
        """Return the principal that was confirmed within `stale_s`; raise `error` if none was.

        The next requests with the key do not ask Postgres for `fresh_s`.
        """
        now = monotonic()
        with self._lock:
            cached = self._cached.get(digest)
            if cached is None or now - cached.confirmed_s >= self._stale_s:
                raise error
            self._cached[digest] = cached._replace(looked_up_s=now)
        return cached.principal

    def _keep(self, digest: bytes, principal: Principal) -> None:
        now = monotonic()
        with self._lock:
            if len(self._cached) >= KEYS_MAX:
                self._cached.clear()
            self._cached[digest] = _CachedKey(principal, now, now)

    def _forget(self, digest: bytes) -> None:
        with self._lock:
            self._cached.pop(digest, None)
            if len(self._unknown) >= KEYS_MAX:
                self._unknown.clear()
            self._unknown[digest] = monotonic()


def _digest(key: str) -> bytes:
    return sha256(key.encode(errors="surrogateescape")).digest()


def key_of(authorization: str) -> str:
    """Return the key in an `Authorization` header. Raises: UnauthorizedError if there is none."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise UnauthorizedError
    return key.strip()


def require(scope: Scope, *permissions: str) -> Principal:
    """Return the principal that the middleware found for the request with this ASGI scope.

    Raises: UnauthorizedError if there is none; ForbiddenError if it lacks a permission.
    """
    principal = scope.get("principal")
    if not isinstance(principal, Principal):
        raise UnauthorizedError
    for permission in permissions:
        if permission not in principal.permissions:
            raise ForbiddenError(permission)
    return principal
