"""Making and reading meters and prices."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy import Connection

from metering import db
from metering.clock import Moment
from metering.errors import FieldProblem, InvalidInputError, NotFoundError, UnsupportedCurrencyError
from metering.fields import NO_NUL, CurrencyCode, Filled255
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

# The start of a price that has always been in force: no event is older.
BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)

_PRICE_TEXT: Final = rf"^[0-9]{{1,{PRICE_INTEGER_DIGITS_MAX}}}(\.[0-9]{{1,{PRICE_DECIMALS_MAX}}})?$"
# Every unit price with so many decimals is a whole multiple of it.
_UNIT_PRICE_GRAIN: Final = Decimal(1).scaleb(-UNIT_PRICE_DECIMALS_MAX)


class Aggregation(BaseModel):
    """How events become a quantity: each counts one, or a property of each is summed.

    The contract's `max` and `last` are not sums, so no single event could be charged by them.
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
        Annotated[str, StringConstraints(strict=True, min_length=1, max_length=100, pattern=NO_NUL)]
        | None
    ) = None

    @model_validator(mode="after")
    def _key_goes_with_sum(self) -> Self:
        if (self.type == "sum") != (self.key is not None):
            raise ValueError("`key` is needed for sum and has no meaning for count")
        return self


class NewMeter(BaseModel):
    """The fields of a new meter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Filled255
    event_name: Filled255
    measurement_unit: Filled255
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
    currency: CurrencyCode
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

    ended_at       from then on it is not in force; at `effective_from` if it was taken back
    superseded_by  the price that replaces it, from `superseded_from` on
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
        """Tell whether it was ended before it charged anything: it never was in force."""
        return self.ended_at is not None and self.ended_at <= self.effective_from

    @property
    def unit_price(self) -> Decimal:
        """Minor units for one unit. It is exact, because `create_price` refuses other prices."""
        return EXACT.normalize(EXACT.divide(self.price_per_unit, Decimal(self.units)))


def create_meter(conn: Connection, business_id: BusinessId, new: NewMeter) -> Meter:
    """Make a meter. It measures events that are drained from now on."""
    row = conn.execute(
        statements.INSERT_METER,
        {
            **new.model_dump(exclude={"aggregation", "filter"}),
            "meter_id": new_id("mtr"),
            "business_id": business_id,
            "aggregation_type": new.aggregation.type,
            "aggregation_key": new.aggregation.key,
            "filter": new.filter.model_dump_json() if new.filter else None,
        },
    ).one()
    conn.execute(statements.TOUCH, {"business_id": business_id})
    return db.row(_meter, row)


def create_price(
    conn: Connection, business_id: BusinessId, new: NewPrice, currencies: tuple[str, ...]
) -> Price:
    """Make a price; no past charge changes. A price that begins later supersedes it.

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
    start = new.effective_from
    row = conn.execute(
        statements.INSERT_PRICE,
        {
            **new.model_dump(exclude={"price_per_unit", "effective_from"}),
            "price_id": new_id("prc"),
            "business_id": business_id,
            "price_per_unit": Decimal(new.price_per_unit),
            "effective_from": BEGINNING if start == "beginning" else _moment(start),
            "is_now": start == "now",
            "beginning": BEGINNING,
        },
    ).one_or_none()
    if row is None:
        raise InvalidInputError(FieldProblem("effective_from", "there is a price from then on"))
    conn.execute(statements.TOUCH, {"business_id": business_id})
    return get_price(conn, business_id, PriceId(row.price_id))


def _moment(start: datetime | str | None) -> datetime | None:
    return start if isinstance(start, datetime) else None


def _check_exact(new: NewPrice) -> None:
    """Refuse a price such as 1 per 3 units: sums of events would have endless decimals."""
    grains = EXACT.divide(Decimal(new.price_per_unit), _UNIT_PRICE_GRAIN)
    if int(grains) % new.units:
        decimals = UNIT_PRICE_DECIMALS_MAX
        reason = f"price_per_unit / units must be exact within {decimals} decimals"
        raise InvalidInputError(FieldProblem("units", reason))


def get_price(conn: Connection, business_id: BusinessId, price_id: PriceId) -> Price:
    """Return a price of this business. Raises: NotFoundError if it has none of that id."""
    key = {"business_id": business_id, "price_id": price_id}
    return db.get_one(Price, conn.execute(statements.PRICE, key), "price", price_id)


def end_price(conn: Connection, business_id: BusinessId, price_id: PriceId) -> Price:
    """End a price from now on, or take it back if nothing was charged since it was made.

    No past charge changes. Raises: NotFoundError if the business has no such price.
    """
    key = {"business_id": business_id, "price_id": price_id}
    if conn.execute(statements.END_PRICE, key).rowcount:
        conn.execute(statements.TOUCH, {"business_id": business_id})
    return get_price(conn, business_id, price_id)


def get_meter(conn: Connection, business_id: BusinessId, meter_id: MeterId) -> Meter:
    """Return a meter of this business. Raises: NotFoundError if it has none of that id."""
    key = {"business_id": business_id, "meter_id": meter_id}
    return db.get_one(_meter, conn.execute(statements.METER, key), "meter", meter_id)


def list_meters(conn: Connection, business_id: BusinessId) -> list[Meter]:
    """Return the meters of a business, archived ones too, oldest first."""
    return db.rows(_meter, conn.execute(statements.METERS, {"business_id": business_id}))


def list_meters_at(conn: Connection, business_id: BusinessId, at: datetime) -> list[Meter]:
    """Return the meters as they were at a moment.

    A meter that was taken back into use shows no trace of the time when it was archived.
    """
    key = {"business_id": business_id, "at": at}
    return db.rows(_meter, conn.execute(statements.METERS_AT, key))


def list_prices(conn: Connection, business_id: BusinessId) -> list[Price]:
    """Return the prices of a business, by meter and currency, in the order they take effect."""
    return db.rows(Price, conn.execute(statements.PRICES, {"business_id": business_id}))


def list_prices_at(conn: Connection, business_id: BusinessId, at: datetime) -> list[Price]:
    """Return the prices as they were at a moment, without `superseded_by`."""
    key = {"business_id": business_id, "at": at}
    return db.rows(Price, conn.execute(statements.PRICES_AT, key))


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
    values = {
        "business_id": business_id,
        "archived": archived,
        "page": page,
        "offset": offset,
        "after": after,
    }
    return db.rows(_meter, conn.execute(statements.METER_PAGE, values))


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
    values = {
        "business_id": business_id,
        "meter_id": meter_id,
        "page": page,
        "offset": offset,
        "after": after,
    }
    return db.rows(Price, conn.execute(statements.PRICE_PAGE, values))


def archive_meter(
    conn: Connection, business_id: BusinessId, meter_id: MeterId, *, archived: bool = True
) -> None:
    """Stop measuring by a meter, or (archived=False) begin again.

    Raises: NotFoundError if the business has no such meter.
    """
    values = {"business_id": business_id, "meter_id": meter_id, "archived": archived}
    if not conn.execute(statements.SET_ARCHIVED, values).rowcount:
        raise NotFoundError("meter", meter_id)
    conn.execute(statements.TOUCH, {"business_id": business_id})


def _meter(
    *, aggregation_type: Literal["count", "sum"], aggregation_key: str | None, **columns: Any
) -> Meter:
    """Return the meter of a row, given as its columns."""
    stored = columns.pop("filter")
    return Meter(
        **columns,
        aggregation=Aggregation(type=aggregation_type, key=aggregation_key),
        filter=None if stored is None else Filter.model_validate(stored),
    )
