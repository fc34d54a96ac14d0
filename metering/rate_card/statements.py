"""All SQL of meters and prices, a sentence each."""

from typing import Final

from sqlalchemy import text

_METER: Final = """meter_id, business_id, name, event_name, measurement_unit, aggregation_type,
    aggregation_key, description, filter, archived_at, created_at, updated_at"""
_PRICE: Final = "price_id, business_id, meter_id, currency, price_per_unit, units, effective_from"

# A meter.
INSERT_METER: Final = text(
    "INSERT INTO meters (meter_id, business_id, name, event_name, measurement_unit,"
    " aggregation_type, aggregation_key, description, filter) VALUES (:meter_id, :business_id,"
    " :name, :event_name, :measurement_unit, :aggregation_type, :aggregation_key, :description,"
    f" CAST(:filter AS json)) RETURNING {_METER}"
)
# One meter of this business.
METER: Final = text(
    f"SELECT {_METER} FROM meters WHERE business_id = :business_id AND meter_id = :meter_id"
)
# The meters of a business, archived ones too, oldest first.
METERS: Final = text(
    f"SELECT {_METER} FROM meters WHERE business_id = :business_id ORDER BY meter_id"
)
# A page of the meters in use, or of the archived ones, newest first.
METER_PAGE: Final = text(
    f"SELECT {_METER} FROM meters WHERE business_id = :business_id"
    " AND (archived_at IS NOT NULL) = :archived"
    " AND (CAST(:after AS text) IS NULL OR meter_id < :after)"
    " ORDER BY meter_id DESC LIMIT :page OFFSET :offset"
)
# Archive a meter, or bring it back.
SET_ARCHIVED: Final = text(
    "UPDATE meters SET archived_at = CASE WHEN :archived THEN now() END, updated_at = now()"
    " WHERE business_id = :business_id AND meter_id = :meter_id"
)
# A price; without a time, the first of the meter in its currency begins with all time. It says
# nothing about what was charged before it was known.
INSERT_PRICE: Final = text(
    f"INSERT INTO prices ({_PRICE}) VALUES (:price_id, :business_id, :meter_id, :currency,"
    " :price_per_unit, :units, coalesce(CAST(:effective_from AS timestamptz), CASE WHEN :is_now"
    " OR EXISTS (SELECT FROM prices WHERE meter_id = :meter_id AND currency = :currency)"
    " THEN now() ELSE CAST(:beginning AS timestamptz) END))"
    " ON CONFLICT (meter_id, currency, effective_from) DO NOTHING"
    f" RETURNING {_PRICE}"
)
# The prices of a business in the order in which they come into force.
PRICES: Final = text(
    f"SELECT {_PRICE} FROM prices WHERE business_id = :business_id"
    " ORDER BY meter_id, currency, effective_from"
)
# A page of the prices of a business, or of one meter, newest first.
PRICE_PAGE: Final = text(
    f"SELECT {_PRICE} FROM prices WHERE business_id = :business_id"
    " AND (CAST(:meter_id AS text) IS NULL OR meter_id = :meter_id)"
    " AND (CAST(:after AS text) IS NULL OR price_id < :after)"
    " ORDER BY price_id DESC LIMIT :page OFFSET :offset"
)
# Say that compiled rate cards of the business are out of date.
TOUCH: Final = text(
    "UPDATE businesses SET rate_card_version = rate_card_version + 1"
    " WHERE business_id = :business_id"
)
# The versions of the rate cards of some businesses.
VERSIONS: Final = text(
    "SELECT business_id, rate_card_version FROM businesses WHERE business_id = ANY(:business_ids)"
)
# What a business does with usage that nothing prices.
ON_UNMETERED: Final = text("SELECT on_unmetered FROM businesses WHERE business_id = :business_id")
# Which properties which meters sum, for the edge.
SUMMED_PROPERTIES: Final = text(
    "SELECT business_id, event_name, array_agg(DISTINCT aggregation_key ORDER BY aggregation_key)"
    " AS properties FROM meters WHERE aggregation_type = 'sum' AND archived_at IS NULL"
    " GROUP BY business_id, event_name"
)
