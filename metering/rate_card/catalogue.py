"""Making and reading meters and prices."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy import Connection, Row

from metering.clock import Moment
from metering.errors import FieldProblem, InvalidInputError, NotFoundError, UnsupportedCurrencyError
from metering.fields import FILLED, NO_NUL
from metering.ids import BusinessId, Currency, MeterId, PriceId, new_id
from metering.money import (
    EXACT,
    PRICE_DECIMALS_MAX,
    PRICE_INTEGER_DIGITS_MAX,
    UNIT_PRICE_DECIMALS_MAX,
    UNITS_MAX,
)
from metering.rate_card import statements
from metering.rate_card.filter import Filter

Name = Annotated[
    str,
    StringConstraints(strict=True, max_length=255, pattern=FILLED),
]

# From when on a price is in force that always was: no event is older.
BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)

_PRICE_TEXT: Final = rf"^[0-9]{{1,{PRICE_INTEGER_DIGITS_MAX}}}(\.[0-9]{{1,{PRICE_DECIMALS_MAX}}})?$"
# Every unit price with so many decimals is a whole number of these.
_UNIT_PRICE_GRAIN: Final = Decimal(1).scaleb(-UNIT_PRICE_DECIMALS_MAX)


class Aggregation(BaseModel):
    """How events become a quantity: each counts one, or a property of each is summed.

    The contract's `max` and `last` are not sums of events, so no event could be charged by itself.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "oneOf": [
                {"properties": {"type": {"const": "count"}, "key": {"type": "null"}}},
                {
                    "properties": {"type": {"const": "sum"}, "key": {"type": "string"}},
                    "required": ["key"],
                },
            ]
        },
    )

    type: Literal["count", "sum"]
    key: (
        Annotated[
            str,
            StringConstraints(strict=True, min_length=1, max_length=100, pattern=NO_NUL),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _key_goes_with_sum(self) -> Self:
        if (self.type == "sum") != (self.key is not None):
            raise ValueError("`key` is needed for sum and has no meaning for count")
        return self


class NewMeter(BaseModel):
    """What a meter is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    event_name: Name
    measurement_unit: Name
    aggregation: Aggregation
    description: Annotated[str, StringConstraints(max_length=1000, pattern=NO_NUL)] | None = None
    filter: Filter | None = None


class NewPrice(BaseModel):
    """A price in minor units per `units`, from a moment on.

    Default: the first price of a meter in a currency is in force from the beginning, so that usage
    from before it is charged; a later one from now on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    meter_id: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_NUL)]
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
    price_per_unit: Annotated[str, StringConstraints(strict=True, pattern=_PRICE_TEXT)]
    units: Annotated[int, Field(strict=True, ge=1, le=UNITS_MAX)] = 1
    effective_from: Moment | Literal["beginning", "now"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """A meter as stored."""

    meter_id: MeterId
    business_id: BusinessId
    name: str
    event_name: str
    measurement_unit: str
    aggregation: Aggregation
    description: str | None
    filter: Filter | None
    archived_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A price as stored; `effective_from` may be `BEGINNING`.

    ended_at         from then on it is not in force; at `effective_from`: it was taken back
    superseded_by    the price that takes its place, at `superseded_from`
    """

    price_id: PriceId
    business_id: BusinessId
    meter_id: MeterId
    currency: Currency
    price_per_unit: Decimal
    units: int
    effective_from: datetime
    ended_at: datetime | None = None
    superseded_by: PriceId | None = None
    superseded_from: datetime | None = None

    @property
    def is_taken_back(self) -> bool:
        """Tell whether it was ended before anything was charged by it: it never was in force."""
        return self.ended_at is not None and self.ended_at <= self.effective_from

    @property
    def unit_price(self) -> Decimal:
        """Minor units for one unit: exact, because `create_price` refuses what is not."""
        return EXACT.normalize(EXACT.divide(self.price_per_unit, Decimal(self.units)))


def create_meter(conn: Connection, business_id: BusinessId, new: NewMeter) -> Meter:
    """Make a meter; events that are drained from now on are measured by it."""
    row = conn.execute(
        statements.INSERT_METER,
        {
            "meter_id": new_id("mtr"),
            "business_id": business_id,
            "name": new.name,
            "event_name": new.event_name,
            "measurement_unit": new.measurement_unit,
            "aggregation_type": new.aggregation.type,
            "aggregation_key": new.aggregation.key,
            "description": new.description,
            "filter": new.filter.model_dump_json() if new.filter else None,
        },
    ).one()
    conn.execute(statements.TOUCH, {"business_id": business_id})
    return _meter(row)


def create_price(
    conn: Connection, business_id: BusinessId, new: NewPrice, currencies: tuple[str, ...]
) -> Price:
    """Make a price; it never changes what was already charged.

    A price that is made before one that began later is superseded by that one, and says so.

    Raises:
        UnsupportedCurrencyError: the currency is not configured.
        NotFoundError: the business has no such meter.
        InvalidInputError: the price of one unit would have endless decimals, or the meter has a
            price in this currency from the same moment on.

    """
    if new.currency not in currencies:
        raise UnsupportedCurrencyError(new.currency, currencies)
    get_meter(conn, business_id, MeterId(new.meter_id))
    _check_exact(new)
    row = conn.execute(
        statements.INSERT_PRICE,
        {
            "price_id": new_id("prc"),
            "business_id": business_id,
            "meter_id": new.meter_id,
            "currency": new.currency,
            "price_per_unit": Decimal(new.price_per_unit),
            "units": new.units,
            **_start(new),
        },
    ).one_or_none()
    if row is None:
        raise InvalidInputError(FieldProblem("effective_from", "there is a price from then on"))
    conn.execute(statements.TOUCH, {"business_id": business_id})
    return get_price(conn, business_id, PriceId(row.price_id))


def get_price(conn: Connection, business_id: BusinessId, price_id: PriceId) -> Price:
    """Return a price of this business.

    Raises:
        NotFoundError: there is none of that id.

    """
    key = {"business_id": business_id, "price_id": price_id}
    row = conn.execute(statements.PRICE, key).one_or_none()
    if row is None:
        raise NotFoundError("price", price_id)
    return Price(**row._mapping)  # noqa: SLF001


def end_price(conn: Connection, business_id: BusinessId, price_id: PriceId) -> Price:
    """End a price from now on, or take it back if nothing was charged since it was made.

    What was charged stays. Once it has ended, nothing more happens to it.

    Raises:
        NotFoundError: the business has no such price.

    """
    key = {"business_id": business_id, "price_id": price_id}
    if conn.execute(statements.END_PRICE, key).rowcount:
        conn.execute(statements.TOUCH, {"business_id": business_id})
    return get_price(conn, business_id, price_id)


def _start(new: NewPrice) -> dict[str, object]:
    """Return the parameters that say when a price begins."""
    start = new.effective_from
    given = BEGINNING if start == "beginning" else start
    return {
        "effective_from": given if isinstance(given, datetime) else None,
        "is_now": start == "now",
        "beginning": BEGINNING,
    }


def _check_exact(new: NewPrice) -> None:
    """Refuse 1 per 3 units: the price of one unit must end, or sums of events would not."""
    grains = EXACT.divide(Decimal(new.price_per_unit), _UNIT_PRICE_GRAIN)
    if int(grains) % new.units:
        raise InvalidInputError(
            FieldProblem(
                "units",
                f"price_per_unit / units must be exact within {UNIT_PRICE_DECIMALS_MAX} decimals",
            )
        )


def get_meter(conn: Connection, business_id: BusinessId, meter_id: MeterId) -> Meter:
    """Return a meter of this business.

    Raises:
        NotFoundError: there is none of that id.

    """
    row = conn.execute(
        statements.METER, {"business_id": business_id, "meter_id": meter_id}
    ).one_or_none()
    if row is None:
        raise NotFoundError("meter", meter_id)
    return _meter(row)


def list_meters(conn: Connection, business_id: BusinessId) -> list[Meter]:
    """Return the meters of a business, archived ones too, oldest first."""
    return [_meter(row) for row in conn.execute(statements.METERS, {"business_id": business_id})]


def page_of_meters(
    conn: Connection,
    business_id: BusinessId,
    *,
    archived: bool,
    page: int,
    offset: int = 0,
    after: MeterId | None = None,
) -> list[Meter]:
    """Return up to `page` meters in use, or archived ones, newest first, older than `after`."""
    rows = conn.execute(
        statements.METER_PAGE,
        {
            "business_id": business_id,
            "archived": archived,
            "page": page,
            "offset": offset,
            "after": after,
        },
    )
    return [_meter(row) for row in rows]


def page_of_prices(
    conn: Connection,
    business_id: BusinessId,
    *,
    meter_id: MeterId | None,
    page: int,
    offset: int = 0,
    after: PriceId | None = None,
) -> list[Price]:
    """Return up to `page` prices, of one meter or of all, newest first, older than `after`."""
    rows = conn.execute(
        statements.PRICE_PAGE,
        {
            "business_id": business_id,
            "meter_id": meter_id,
            "page": page,
            "offset": offset,
            "after": after,
        },
    )
    return [Price(**row._mapping) for row in rows]  # noqa: SLF001


def list_prices(conn: Connection, business_id: BusinessId) -> list[Price]:
    """Return the prices of a business, by meter and currency, in the order they take effect."""
    rows = conn.execute(statements.PRICES, {"business_id": business_id})
    return [Price(**row._mapping) for row in rows]  # noqa: SLF001


def archive_meter(
    conn: Connection, business_id: BusinessId, meter_id: MeterId, *, archived: bool = True
) -> None:
    """Stop measuring by a meter, or (archived=False) begin again.

    Raises:
        NotFoundError: the business has no such meter.

    """
    found = conn.execute(
        statements.SET_ARCHIVED,
        {"business_id": business_id, "meter_id": meter_id, "archived": archived},
    ).rowcount
    if not found:
        raise NotFoundError("meter", meter_id)
    conn.execute(statements.TOUCH, {"business_id": business_id})


def _meter(row: Row[Any]) -> Meter:
    values = dict(row._mapping)  # noqa: SLF001
    kind, key = values.pop("aggregation_type"), values.pop("aggregation_key")
    found = values.pop("filter")
    return Meter(
        **values,
        aggregation=Aggregation(type=kind, key=key),
        filter=None if found is None else Filter.model_validate(found),
    )
