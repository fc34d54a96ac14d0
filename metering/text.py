"""Patterns of texts that may be stored: Postgres keeps no NUL in one."""

from typing import Final

NO_NUL: Final = r"^[^\x00]*$"
# The same, and not blank.
FILLED: Final = r"^[^\x00]*[^\s\x00][^\x00]*$"
