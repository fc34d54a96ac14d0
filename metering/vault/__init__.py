"""Secrets at rest: sealed on their way into the database, opened on their way out.

A dump of the tables then shows no key of a payment provider. The keys come with the connection,
from the settings of the process. The first key seals, all of them open. Without keys secrets are
stored in plain text, and such secrets can always be read.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import orjson
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import Connection

from metering.errors import UnreadableSecretError

SEALED_PREFIX: Final = "sealed:v1:"
# The option of a connection that holds its vault.
VAULT: Final = "gullak_vault"


def new_key() -> str:
    """Return a new key."""
    return Fernet.generate_key().decode()


class Vault:
    """Seals and opens with keys of `new_key`.

    Raises: ValueError if a key is malformed.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        fernets = [Fernet(key) for key in keys]
        self._first = fernets[0] if fernets else None
        self._all = MultiFernet(fernets) if fernets else None

    @property
    def has_keys(self) -> bool:
        """Tell whether secrets are sealed at all."""
        return self._first is not None

    def seal(self, secret: str) -> str:
        """Return the form in which a secret is stored."""
        if self._first is None:
            return secret
        return SEALED_PREFIX + self._first.encrypt(secret.encode()).decode()

    def open(self, stored: str) -> str:
        """Return the secret.

        Raises: UnreadableSecretError if no key opens it.
        """
        if not stored.startswith(SEALED_PREFIX):
            return stored
        try:
            if self._all is not None:
                return self._all.decrypt(stored.removeprefix(SEALED_PREFIX)).decode()
        except InvalidToken:
            pass
        raise UnreadableSecretError

    def is_fresh(self, stored: str) -> bool:
        """Tell whether the first key sealed it."""
        if self._first is None or not stored.startswith(SEALED_PREFIX):
            return self._first is None
        try:
            self._first.decrypt(stored.removeprefix(SEALED_PREFIX))
        except InvalidToken:
            return False
        return True

    def seal_json(self, values: Mapping[str, str]) -> str:
        """Return what a JSON column stores of secret values: a sealed one holds a string."""
        plain = orjson.dumps(dict(values)).decode()
        return orjson.dumps(self.seal(plain)).decode() if self.has_keys and values else plain

    def open_json(self, stored: Mapping[str, str] | str) -> Mapping[str, str]:
        """Return the values that a JSON column stores.

        Raises:
            UnreadableSecretError: see `open`.

        """
        if not isinstance(stored, str):
            return stored
        opened: Mapping[str, str] = orjson.loads(self.open(stored))
        return opened


_WITHOUT_KEYS: Final = Vault()


def vault_of(conn: Connection) -> Vault:
    """Return the vault of a connection."""
    vault = conn.get_execution_options().get(VAULT, _WITHOUT_KEYS)
    if not isinstance(vault, Vault):
        raise TypeError(f"{VAULT} is a {type(vault).__name__}")
    return vault
