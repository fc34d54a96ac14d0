"""Options that several commands declare, and parsers of money, prices and times.

An amount with a decimal point is refused: otherwise `5.00` could be taken for five cents.
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from typer import Argument, Option

from metering.clock import Moment
from metering.errors import FieldProblem, InvalidInputError
from metering.ids import Currency, CustomerId, EntryId
from metering.money import INT64_MAX, PRICE_DECIMALS_MAX, PRICE_INTEGER_DIGITS_MAX

Read = TypeVar("Read")

_MOMENT: Final[TypeAdapter[datetime]] = TypeAdapter(Moment)
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,100}")
_WITH_CENTS: Final = re.compile(r"([0-9]{1,15})[.,]([0-9]{1,2})")
_PRICE: Final = re.compile(
    rf"[0-9]{{1,{PRICE_INTEGER_DIGITS_MAX}}}(\.[0-9]{{1,{PRICE_DECIMALS_MAX}}})?"
)

Customer = Annotated[CustomerId, Option("--customer", "-c", help="Customer id.", metavar="ID")]
CustomerArgument = Annotated[CustomerId, Argument(help="Customer id.", metavar="CUSTOMER")]
EntryArgument = Annotated[EntryId, Argument(help="Ledger entry id.", metavar="ENTRY")]
OfCustomer = Annotated[
    CustomerId | None, Option("--customer", "-c", help="Only of this customer.", metavar="ID")
]
CurrencyCode = Annotated[Currency, Option("--currency", help="ISO 4217 code.", metavar="CODE")]
Limit = Annotated[int, Option("--limit", help="How many at most.", min=1, max=1000)]
Priority = Annotated[int | None, Option("--priority", help="0 to 100: lower is consumed first.")]
ValidDays = Annotated[
    int | None, Option("--valid-days", help="How many days the credit is valid. Default: for ever.")
]
ProviderAccount = Annotated[
    str | None, Option("--account", help="Provider account. Default: the only one.", metavar="ID")
]
ReturnUrl = Annotated[
    str | None, Option("--return-url", help="Where the provider's page sends the customer back to.")
]
Reason = Annotated[str, Option("--reason", help="Why: it stands in the history.")]
Key = Annotated[
    str | None,
    Option(
        "--key", help="Idempotency key: to repeat the command with the same key writes nothing."
    ),
]


def minor(option: str, about: str) -> Any:  # what typer.Option returns
    """Return an option that takes money: a whole number of minor units."""
    return _option(option, f"{about} Minor units (cents, paise).", "MINOR", read_minor)


def price(option: str, about: str) -> Any:  # what typer.Option returns
    """Return an option that takes a price: a decimal of minor units."""
    return _option(option, f"{about} Minor units (cents, paise).", "DECIMAL", _read_price)


def moment(option: str, about: str) -> Any:  # what typer.Option returns
    """Return an option that takes a time."""
    return _option(option, f"{about} Such as 2026-01-31T09:30:00Z.", "TIME", _read_moment)


def start(option: str, about: str) -> Any:  # what typer.Option returns
    """Return an option that takes a time, or the word `beginning` or `now`."""
    return _option(option, f"{about} Such as 2026-01-31T09:30:00Z.", "TIME", _read_start)


def _option(option: str, about: str, metavar: str, read: Callable[[str], Read]) -> Any:
    field = option.lstrip("-").replace("-", "_")

    def parse(text: str) -> Read:
        try:
            return read(text)
        except ValueError as error:
            raise InvalidInputError(FieldProblem(field, f"{text!r} {error}")) from None

    return Option(option, help=about, metavar=metavar, parser=parse)


def read_minor(text: str) -> int:
    """Return an amount. Raises ValueError if it is not a whole number, or too large."""
    if not _WHOLE.fullmatch(text):
        major, cents = found.groups() if (found := _WITH_CENTS.fullmatch(text)) else ("5", "50")
        cents = cents.ljust(2, "0")
        whole = int(major + cents)
        raise ValueError(
            "is not a whole number of minor units (cents, paise), which have no decimal point:"
            f" {major}.{cents} USD is {whole}"
        )
    if abs(int(text)) > INT64_MAX:
        raise ValueError(f"is beyond {INT64_MAX}")
    return int(text)


def _read_price(text: str) -> str:
    if not _PRICE.fullmatch(text):
        raise ValueError(
            "is not a price in minor units (cents, paise) with a decimal point, such as 0.03:"
            f" up to {PRICE_INTEGER_DIGITS_MAX} digits before it, {PRICE_DECIMALS_MAX} after it"
        )
    return text


def _read_start(text: str) -> str:
    if text not in {"beginning", "now"}:
        _read_moment(text)
    return text


def _read_moment(text: str) -> datetime:
    try:
        return _MOMENT.validate_python(text)
    except ValidationError:
        raise ValueError("is not RFC 3339 with a time zone, such as 2026-01-31T09:30:00Z") from None


Credit = Annotated[int | None, minor("--credit", "What it is worth. Default: the price.")]
