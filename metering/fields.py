"""Types of the fields of requests. Postgres stores no NUL in a text, so no text may hold one."""

from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
)

from metering.money import INT64_MAX

NO_NUL: Final = r"^[^\x00]*$"
# The same, and not blank.
FILLED: Final = r"^[^\x00]*[^\s\x00][^\x00]*$"

NAME_CHARS_MAX: Final = 255

# Ids of this system, and names, ids and keys that others chose.
Filled64 = Annotated[str, StringConstraints(strict=True, max_length=64, pattern=FILLED)]
Filled255 = Annotated[str, StringConstraints(strict=True, max_length=255, pattern=FILLED)]
# Free text.
Text255 = Annotated[str, StringConstraints(strict=True, max_length=255, pattern=NO_NUL)]
Text500 = Annotated[str, StringConstraints(strict=True, max_length=500, pattern=NO_NUL)]
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


def _fits_64_bits(value: str | float) -> str | float:
    if isinstance(value, int) and abs(value) > INT64_MAX:
        raise ValueError("must fit a 64-bit integer")
    return value


MetadataValue = Annotated[
    StrictBool | StrictInt | StrictFloat | Text500, AfterValidator(_fits_64_bits)
]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,40}$")], MetadataValue],
    Field(max_length=50, json_schema_extra={"additionalProperties": False}),
]

# The languages that the contract's clients know; their strict mode would refuse another.
Locale = Literal[
    "ar", "ca", "de", "en", "es", "fr", "he", "id", "it", "ja", "ka", "ko", "ms", "nl", "pl", "pt",
    "ro", "ru", "sv", "th", "tr", "zh",
]  # fmt: skip


def storable(text: str) -> str:
    """Return the text with each NUL, which JSON may hold, as the symbol for it."""
    return text.replace("\0", "\N{SYMBOL FOR NULL}")
