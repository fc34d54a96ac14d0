"""Errors that the user can correct, in one line without secret, SQL statement or traceback."""

from pydantic import ValidationError
from pydantic_settings import SettingsError

from metering.errors import FieldProblem, GullakError
from metering.field_problems import dotted, one_each, path_of, reason_of


def problem_of(error: Exception) -> str | None:
    """Return the line for an error. Returns None if the fault is ours."""
    if isinstance(error, GullakError):
        return error.message
    if isinstance(error, ValidationError):
        return _refused(error)
    if isinstance(error, SettingsError):
        return f"{error}: it is not JSON"
    return None


def _refused(error: ValidationError) -> str:
    """Return names and reasons only: the refused value may be a secret."""
    found = [
        FieldProblem(dotted(path_of(detail, None)), reason_of(detail)) for detail in error.errors()
    ]
    return "; ".join(f"{p.field}: {p.reason}" if p.field else p.reason for p in one_each(found))
