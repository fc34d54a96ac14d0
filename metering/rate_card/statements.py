"""All SQL of meters and prices, a sentence each."""

from typing import Final

from sqlalchemy import text

_METER: Final = """meter_id, business_id, name, event_name, measurement_unit, aggregation_type,
        aggregation_key, description, filter, archived_at, created_at, updated_at"""
# Prices, each with the one that supersedes it: the next to begin of those that are not ended.
_PRICES: Final = """
    SELECT p.price_id, p.business_id, p.meter_id, p.currency, p.price_per_unit, p.units,
        p.effective_from, p.ended_at, n.price_id AS superseded_by,
        n.effective_from AS superseded_from
    FROM prices p
    LEFT JOIN LATERAL (SELECT n.price_id, n.effective_from FROM prices n
        WHERE p.ended_at IS NULL AND n.meter_id = p.meter_id AND n.currency = p.currency
            AND n.ended_at IS NULL AND n.effective_from > p.effective_from
        ORDER BY n.effective_from LIMIT 1) n ON true
    WHERE p.business_id = :business_id"""

# Insert a meter.
INSERT_METER: Final = text(f"""
    INSERT INTO meters (meter_id, business_id, name, event_name, measurement_unit,
        aggregation_type, aggregation_key, description, filter)
    VALUES (:meter_id, :business_id, :name, :event_name, :measurement_unit, :aggregation_type,
        :aggregation_key, :description, CAST(:filter AS json))
    RETURNING {_METER}
""")
# One meter of this business.
METER: Final = text(f"""
    SELECT {_METER} FROM meters WHERE business_id = :business_id AND meter_id = :meter_id
""")
# The meters of a business, archived ones too, oldest first.
METERS: Final = text(f"""
    SELECT {_METER} FROM meters WHERE business_id = :business_id ORDER BY meter_id
""")
# The same as of a moment: without newer meters, and those that were archived later in use.
METERS_AT: Final = text("""
    SELECT meter_id, business_id, name, event_name, measurement_unit, aggregation_type,
        aggregation_key, description, filter,
        CASE WHEN archived_at <= :at THEN archived_at END AS archived_at, created_at, updated_at
    FROM meters WHERE business_id = :business_id AND created_at <= :at ORDER BY meter_id
""")
# A page of the meters in use, or of the archived ones, newest first.
METER_PAGE: Final = text(f"""
    SELECT {_METER} FROM meters
    WHERE business_id = :business_id AND (archived_at IS NOT NULL) = :archived
        AND (CAST(:after AS text) IS NULL OR meter_id < :after)
    ORDER BY meter_id DESC LIMIT :page OFFSET :offset
""")
# Archive a meter, or take it back into use.
SET_ARCHIVED: Final = text("""
    UPDATE meters SET archived_at = CASE WHEN :archived THEN coalesce(archived_at, now()) END,
        updated_at = CASE WHEN (archived_at IS NOT NULL) = :archived THEN updated_at ELSE now() END
    WHERE business_id = :business_id AND meter_id = :meter_id
""")
# Insert a price. Without a time, the first price of the meter in its currency has always been in
# force; a later one begins now, or when the last one ended. No past charge changes.
INSERT_PRICE: Final = text("""
    INSERT INTO prices
        (price_id, business_id, meter_id, currency, price_per_unit, units, effective_from)
    VALUES (:price_id, :business_id, :meter_id, :currency, :price_per_unit, :units,
        coalesce(CAST(:effective_from AS timestamptz), CASE WHEN :is_now THEN now() ELSE (
            SELECT CASE WHEN count(*) = 0 THEN CAST(:beginning AS timestamptz)
                WHEN bool_or(ended_at IS NULL) THEN now() ELSE max(ended_at) END
            FROM prices WHERE meter_id = :meter_id AND currency = :currency
                AND (ended_at IS NULL OR ended_at > effective_from)) END))
    ON CONFLICT (meter_id, currency, effective_from) WHERE ended_at IS NULL DO NOTHING
    RETURNING price_id
""")
# End a price now. Take it back if it has not begun, or if it cannot have charged anything: no usage
# of its business was debited since it was made, a day ago at most, because notes about older
# batches may be gone.
END_PRICE: Final = text("""
    UPDATE prices p SET ended_at = CASE WHEN p.effective_from >= now()
        OR p.created_at > now() - interval '1 day' AND NOT EXISTS (
            SELECT FROM usage_of_businesses u
            WHERE u.business_id = p.business_id AND u.posted_at >= p.created_at)
        THEN p.effective_from ELSE now() END
    WHERE p.business_id = :business_id AND p.price_id = :price_id AND p.ended_at IS NULL
""")
# One price of this business.
PRICE: Final = text(f"{_PRICES} AND p.price_id = :price_id")
# The prices of a business in the order in which they come into force.
PRICES: Final = text(f"""{_PRICES}
    ORDER BY p.meter_id, p.currency, p.effective_from, p.price_id
""")
# The same as of a moment: without newer prices, and those that were ended later not ended.
PRICES_AT: Final = text("""
    SELECT price_id, business_id, meter_id, currency, price_per_unit, units, effective_from,
        CASE WHEN ended_at <= :at THEN ended_at END AS ended_at
    FROM prices WHERE business_id = :business_id AND created_at <= :at
    ORDER BY meter_id, currency, effective_from, price_id
""")
# A page of the prices of a business, or of one meter, newest first.
PRICE_PAGE: Final = text(f"""{_PRICES}
        AND (CAST(:meter_id AS text) IS NULL OR p.meter_id = :meter_id)
        AND (CAST(:after AS text) IS NULL OR p.price_id < :after)
    ORDER BY p.price_id DESC LIMIT :page OFFSET :offset
""")
# Make the compiled rate cards of the business outdated.
TOUCH: Final = text("""
    UPDATE businesses SET rate_card_version = rate_card_version + 1
    WHERE business_id = :business_id
""")
# The versions of the rate cards of some businesses.
VERSIONS: Final = text("""
    SELECT business_id, rate_card_version FROM businesses WHERE business_id = ANY(:business_ids)
""")
# Whether a business refuses or keeps usage without a price.
ON_UNMETERED: Final = text("SELECT on_unmetered FROM businesses WHERE business_id = :business_id")
# The properties that meters sum, by business and event name.
SUMMED_PROPERTIES: Final = text("""
    SELECT business_id, event_name,
        array_agg(DISTINCT aggregation_key ORDER BY aggregation_key) AS properties
    FROM meters WHERE aggregation_type = 'sum' AND archived_at IS NULL
    GROUP BY business_id, event_name
""")
