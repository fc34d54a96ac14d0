"""Errors that the user can correct, in one line without secret, SQL statement or traceback."""

from pydantic import ValidationError
from pydantic_settings import SettingsError

from metering.errors import GullakError
from worker.settings import problems_of


def problem_of(error: Exception) -> str | None:
    """Return the line for an error. Returns None if the fault is ours."""
    if isinstance(error, GullakError):
        return error.message
    if isinstance(error, ValidationError):
        return problems_of(error)
    if isinstance(error, SettingsError):
        return f"{error}: it is not JSON"
    return None
