"""Parameters that several routes take, in one form each."""

from typing import Annotated, Final

from fastapi import Path, Query

from metering.errors import NotFoundError
from metering.ids import (
    CheckoutId,
    Currency,
    CustomerId,
    EndpointId,
    EntryId,
    MeterId,
    PackageId,
    PriceId,
    PurchaseId,
    RuleId,
)

NUMBER_DIGITS_MAX: Final = 18

_ID: Final = Path(min_length=1, max_length=64)
CheckoutPath = Annotated[CheckoutId, _ID]
CurrencyPath = Annotated[Currency, Path(min_length=1, max_length=10)]
CustomerPath = Annotated[CustomerId, _ID]
EndpointPath = Annotated[EndpointId, _ID]
EntryPath = Annotated[EntryId, _ID]
MeterPath = Annotated[MeterId, _ID]
PackagePath = Annotated[PackageId, _ID]
PricePath = Annotated[PriceId, _ID]
PurchasePath = Annotated[PurchaseId, _ID]
RefusalPath = Annotated[str, _ID]
RulePath = Annotated[RuleId, _ID]

CurrencyQuery = Annotated[Currency | None, Query(max_length=10)]
TextQuery = Annotated[str | None, Query(min_length=1, max_length=255)]


def number_of(kind: str, text: str) -> int:
    """Return the number that is the id of a row. Raises: NotFoundError if it is no number."""
    if not (text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX):
        raise NotFoundError(kind, text)
    return int(text)
