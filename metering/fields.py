"""Types of the fields of requests. Postgres stores no NUL in a text, so no text may hold one."""

from math import isfinite
from typing import Annotated, Final, Literal
from unicodedata import category

from pydantic import (
    Field,
    PlainValidator,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
)

from metering.money import INT64_MAX

NO_NUL: Final = r"^[^\x00]*$"
# The same, and not blank.
FILLED: Final = r"^[^\x00]*[^\s\x00][^\x00]*$"

METADATA_KEY: Final = r"^[A-Za-z0-9_-]{1,40}$"
HTTP_URL: Final = r"^https?://[^\s\x00]+$"
# The address of a page that a customer's browser is sent to.
PAGE_URL: Final = r"^https?://[!-~]+$"

NAME_CHARS_MAX: Final = 255
TEXT_CHARS_MAX: Final = 500
_SHOWN_CHARS_MAX: Final = 60
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cs"})  # control characters, lone surrogates

# Ids of this system, and names, ids and keys that others chose.
Filled64 = Annotated[str, StringConstraints(strict=True, max_length=64, pattern=FILLED)]
Filled255 = Annotated[str, StringConstraints(strict=True, max_length=255, pattern=FILLED)]
# Free text.
Text255 = Annotated[str, StringConstraints(strict=True, max_length=255, pattern=NO_NUL)]
Text500 = Annotated[str, StringConstraints(strict=True, max_length=TEXT_CHARS_MAX, pattern=NO_NUL)]
NonEmpty255 = Annotated[
    str, StringConstraints(strict=True, min_length=1, max_length=255, pattern=NO_NUL)
]

# A currency: in ISO 4217 form; as a provider writes it, in any case; as a name that is looked up
# among the configured ones.
CurrencyCode = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Z]{3}$")]
CurrencyText = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z]{3}$")]
CurrencyName = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=10)]

# Amounts in minor units.
Minor = Annotated[int, Field(strict=True, ge=0, le=INT64_MAX)]
PositiveMinor = Annotated[int, Field(strict=True, gt=0, le=INT64_MAX)]
SignedMinor = Annotated[int, Field(strict=True, ge=-INT64_MAX, le=INT64_MAX)]


def flat(value: object) -> bool | int | float | str:
    """Return a text, a finite number or a bool. Raises ValueError for another value.

    One function with one reason: a union of types has a reason for each of them.
    """
    if isinstance(value, str) and len(value) > TEXT_CHARS_MAX:
        raise ValueError(f"is longer than {TEXT_CHARS_MAX} characters")
    if isinstance(value, str) and any(category(char) == "Cs" for char in value):
        raise ValueError("holds a lone surrogate, which is not Unicode text")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("is not a finite number")
    if isinstance(value, str | bool | int | float):
        return value
    kind = "null" if value is None else "nested"
    raise ValueError(f"is {kind}; a text, a number or a bool is taken")


def _storable_and_flat(value: object) -> bool | int | float | str:
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not hold a NUL character")
    if isinstance(value, int) and abs(value) > INT64_MAX:
        raise ValueError("must fit a 64-bit integer")
    return flat(value)


MetadataValue = Annotated[
    bool | int | float | str,
    PlainValidator(
        _storable_and_flat, json_schema_input_type=StrictBool | StrictInt | StrictFloat | Text500
    ),
]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(pattern=METADATA_KEY)], MetadataValue],
    Field(max_length=50, json_schema_extra={"additionalProperties": False}),
]

# The languages that the contract's clients know; their strict mode would refuse another.
Locale = Literal[
    "ar", "ca", "de", "en", "es", "fr", "he", "id", "it", "ja", "ka", "ko", "ms", "nl", "pl", "pt",
    "ro", "ru", "sv", "th", "tr", "zh",
]  # fmt: skip


def shown(text: str) -> str:
    """Return a producer's text for use in a message: short and printable."""
    short = text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"
    return short if name_problem(text, chars_max=len(text)) is None else ascii(short)


def name_problem(text: str, *, chars_max: int) -> str | None:
    """Return why `text` cannot be an id, a name or a key. Returns None if it can."""
    if len(text) > chars_max:
        return f"is longer than {chars_max} characters"
    if not text or text.isspace():
        return "is blank"
    if not text.isprintable() and any(category(char) in _REFUSED_CATEGORIES for char in text):
        return "holds a control character or a lone surrogate"
    return None


def storable(text: str) -> str:
    """Return the text with each NUL, which JSON may hold, as the symbol for it."""
    return text.replace("\0", "\N{SYMBOL FOR NULL}")
