"""The usage event: what a producer may say, and the reason for each refusal.

The fields check themselves in plain functions: pydantic brings the structure (missing and unknown
fields, defaults, the JSON schema). Its own constrained types were measured beside them (1,000
events with five properties each): no faster, and a wrong property then has four errors, one per
member of the union, instead of one reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from unicodedata import category

from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from metering.buffer.chunk import Metadata, MetadataValue
from metering.clock import RFC3339, utc_now
from metering.fields import FILLED, NO_NUL
from metering.money import INT64_MAX

NAME_CHARS_MAX: Final = 255
METADATA_PAIRS_MAX: Final = 50
METADATA_KEY_CHARS_MAX: Final = 100
METADATA_TEXT_CHARS_MAX: Final = 500

_INT64_MIN: Final = -INT64_MAX - 1
# A double beyond the integers is no measurement of anything that is sold.
_DOUBLE_LIMIT: Final = float(2**63)
_SHOWN_CHARS_MAX: Final = 60
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cs"})  # control characters, lone surrogates


@dataclass(frozen=True, slots=True)
class AcceptLimits:
    """How old and how early an event may be, and how many come in one request."""

    age_max_s: int = 35 * 86_400
    ahead_max_s: int = 300
    request_events_max: int = 1000


def refusal(reason: str, *, key: str = "") -> PydanticCustomError:
    """Return the error of a refused field; `key` names the property of the metadata at fault."""
    # Braces would be read as placeholders.
    text = reason.replace("{", "(").replace("}", ")")
    return PydanticCustomError("refused", text, {"key": key} if key else None)


def shown(text: str) -> str:
    """Return a producer's text as it may stand in a message: short, and nothing unprintable."""
    short = text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"
    return short if name_problem(text, chars_max=len(text)) is None else ascii(short)


def name_problem(text: str, *, chars_max: int) -> str | None:
    """Return why `text` cannot be an id, a name or a key; None if it can."""
    if len(text) > chars_max:
        return f"is longer than {chars_max} characters"
    if not text or text.isspace():
        return "is blank"
    if text.isascii() and text.isprintable():
        return None
    if any(category(char) in _REFUSED_CATEGORIES for char in text):
        return "holds a control character or a lone surrogate"
    return None


def _is_ordinary(text: str) -> bool:
    """Tell fast what holds for nearly every name; what it does not vouch for is looked at."""
    return text.isascii() and text.isprintable() and not text.isspace()


def _name(value: object) -> str:
    if type(value) is str and 0 < len(value) <= NAME_CHARS_MAX and _is_ordinary(value):
        return value
    if not isinstance(value, str):
        raise refusal(f"is {_kind(value)}, not a text")
    if problem := name_problem(value, chars_max=NAME_CHARS_MAX):
        raise refusal(problem)
    return str.__str__(value)


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {shown(type(value).__name__)}"


def _timestamp(value: object) -> datetime:
    """Take RFC 3339 text or a datetime, with a zone, and return it in UTC; none given: now."""
    if value is None:
        return utc_now()
    moment = value if isinstance(value, datetime) else _parsed(value)
    if moment.utcoffset() is None:
        raise refusal("has no time zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise refusal("is out of range") from None


def _parsed(value: object) -> datetime:
    # Numbers are refused: whether they are seconds or milliseconds is a guess.
    if not isinstance(value, str):
        raise refusal(f"is {_kind(value)}, not an RFC 3339 text or a datetime")
    if not RFC3339.fullmatch(value):
        raise refusal("is not RFC 3339 with a time zone, such as 2026-01-31T09:30:00Z")
    try:
        return datetime.fromisoformat(value.upper())
    except ValueError:
        raise refusal("is not a time that exists") from None


def _metadata(value: object) -> Metadata:
    """Take flat metadata and return a copy of exact built-in types; none given: none."""
    if type(value) is dict and _is_ordinary_metadata(value):
        return dict(value)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise refusal(f"is {_kind(value)}, not an object of properties")
    if len(value) > METADATA_PAIRS_MAX:
        raise refusal(f"has {len(value)} properties; at most {METADATA_PAIRS_MAX} are taken")
    return {_key(key): _property(key, given) for key, given in value.items()}


def _is_ordinary_metadata(pairs: dict[Any, Any]) -> bool:
    """Tell fast what holds for nearly all metadata: half of the time that naming faults takes."""
    if len(pairs) > METADATA_PAIRS_MAX:
        return False
    for key, value in pairs.items():
        if type(key) is not str or not 0 < len(key) <= METADATA_KEY_CHARS_MAX:
            return False
        kind = type(value)
        if kind is int:
            taken = _INT64_MIN <= value <= INT64_MAX
        elif kind is str:
            taken = len(value) <= METADATA_TEXT_CHARS_MAX and value.isascii() and "\0" not in value
        elif kind is float:
            taken = -_DOUBLE_LIMIT < value < _DOUBLE_LIMIT
        else:
            taken = kind is bool
        if not taken or not _is_ordinary(key):
            return False
    return True


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise refusal(f"has a key {_kind(key)}, not a text")
    if problem := name_problem(key, chars_max=METADATA_KEY_CHARS_MAX):
        raise refusal(f"has a key that {problem}: {shown(key)}")
    return str.__str__(key)


def _property(key: str, value: object) -> MetadataValue:
    """Return the value as an exact built-in: a subclass (an enum, numpy's float) is its base.

    Nothing is converted: 5 is not "5", and True is not 1.
    """
    checked: MetadataValue
    if isinstance(value, str):
        checked = text = str.__str__(value)
        problem = _text_problem(text)
    elif isinstance(value, bool):
        return value
    elif isinstance(value, int):
        checked = int(value)
        problem = None if _INT64_MIN <= checked <= INT64_MAX else "is beyond a 64-bit integer"
    elif isinstance(value, float):
        checked = float(value)
        problem = _double_problem(checked)
    else:
        raise refusal(_untaken(value), key=key)
    if problem:
        raise refusal(problem, key=key)
    return checked


def _text_problem(text: str) -> str | None:
    if len(text) > METADATA_TEXT_CHARS_MAX:
        return f"is longer than {METADATA_TEXT_CHARS_MAX} characters"
    if "\0" in text:
        return "holds a NUL character, which Postgres cannot keep"
    if not text.isascii() and any(category(char) == "Cs" for char in text):
        return "holds a lone surrogate, which is not Unicode text"
    return None


def _double_problem(number: float) -> str | None:
    if -_DOUBLE_LIMIT < number < _DOUBLE_LIMIT:
        return None
    if abs(number) < float("inf"):
        return "is absurd: beyond 2^63"
    return "is not a finite number"


def _untaken(value: object) -> str:
    if isinstance(value, Mapping | list | tuple | set):
        return "is nested; metadata is flat"
    return f"is {_kind(value)}; text, integer, double and bool are taken"


# What the JSON schema says of a field: the functions above decide.
_SaidName = Annotated[str, Field(max_length=NAME_CHARS_MAX, pattern=FILLED)]
_SaidKey = Annotated[str, Field(min_length=1, max_length=METADATA_KEY_CHARS_MAX)]
_SaidText = Annotated[str, Field(max_length=METADATA_TEXT_CHARS_MAX, pattern=NO_NUL)]
_SaidInteger = Annotated[int, Field(ge=_INT64_MIN, le=INT64_MAX)]
_SaidMetadata = Annotated[
    dict[_SaidKey, _SaidText | _SaidInteger | float | bool],
    Field(max_length=METADATA_PAIRS_MAX),
]
Name = Annotated[str, PlainValidator(_name, json_schema_input_type=_SaidName)]
Timestamp = Annotated[datetime, PlainValidator(_timestamp, json_schema_input_type=datetime | None)]
Properties = Annotated[
    Metadata, PlainValidator(_metadata, json_schema_input_type=_SaidMetadata | None)
]


class UsageEvent(BaseModel):
    """One use of a metered product by one customer.

    event_id    the producer's own, unique within its business: a retry with the same id and the
                same content is charged once
    timestamp   when it happened; now, if left out
    metadata    flat: what meters filter on and sum
    """

    # Frozen does not reach into the metadata: an instance is looked at again where it is taken.
    model_config = ConfigDict(frozen=True, extra="forbid", revalidate_instances="always")

    event_id: Name
    customer_id: Name
    event_name: Name
    timestamp: Timestamp = Field(default_factory=utc_now)
    metadata: Properties = Field(default_factory=dict)
