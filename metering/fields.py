"""Patterns of texts that may be stored: Postgres keeps no NUL in one."""

from typing import Final

NO_NUL: Final = r"^[^\x00]*$"
# The same, and not blank.
FILLED: Final = r"^[^\x00]*[^\s\x00][^\x00]*$"


def storable(text: str) -> str:
    """Return a text that Postgres holds: it takes no NUL; JSON does, escaped."""
    return text.replace("\0", "\N{SYMBOL FOR NULL}")
