"""Parameters that several routes take, in one form each."""

from collections import Counter
from typing import Annotated, Final

from fastapi import Path, Query, Request
from fastapi.dependencies.models import Dependant

from metering.errors import FieldProblem, InvalidQueryError, NotFoundError
from metering.fields import shown
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


def check_query(request: Request) -> None:
    """Refuse query parameters that the route does not have, and those that are given twice.

    No route takes several values of one parameter. Raises: InvalidQueryError.
    """
    if not request.scope["query_string"]:
        return
    known = _names_in(request.scope["route"].dependant)
    given = Counter(name for name, _ in request.query_params.multi_items())
    problems = [
        FieldProblem(shown(name), _unknown(known) if name not in known else "is given twice")
        for name, times in given.items()
        if times > 1 or name not in known
    ]
    if problems:
        raise InvalidQueryError(*problems)


def _unknown(known: set[str]) -> str:
    listed = ", ".join(sorted(known))
    return f"is unknown here; known are {listed}" if listed else "is unknown here; none is known"


def _names_in(dependant: Dependant) -> set[str]:
    """Return the names of the query parameters of a route."""
    own = {parameter.alias for parameter in dependant.query_params}
    return own.union(*map(_names_in, dependant.dependencies))


def number_of(kind: str, text: str) -> int:
    """Return the number that is the id of a row. Raises: NotFoundError if it is no number."""
    if not (text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX):
        raise NotFoundError(kind, text)
    return int(text)
