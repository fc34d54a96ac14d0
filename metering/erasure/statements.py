"""All SQL that erases the data of a person, a sentence each."""

from typing import Final

from sqlalchemy import text

# Blank the row of a customer of this business: the id, the wallets and the price list stay. It
# changes nothing a second time.
BLANK_CUSTOMER: Final = text("""
    UPDATE customers SET email = '', name = '', phone_number = NULL, preferred_locale = NULL,
        metadata = '{}', updated_at = CASE WHEN email = '' AND name = ''
            AND phone_number IS NULL AND preferred_locale IS NULL
            AND CAST(metadata AS text) = '{}' THEN updated_at ELSE now() END
    WHERE business_id = :business_id AND customer_id = :customer_id
""")
# End automatic top-ups: they name a means of payment.
DELETE_TOP_UPS: Final = text("""
    DELETE FROM top_up_rules WHERE business_id = :business_id AND wallet_id IN (
        SELECT wallet_id FROM wallets
        WHERE business_id = :business_id AND customer_id = :customer_id)
""")
_BODIES: Final = """FROM provider_events WHERE business_id = :business_id AND body <> ''
    AND (provider, payment_id) IN (
        SELECT p.provider, p.payment_id FROM payments p
        LEFT JOIN purchases o USING (purchase_id)
        LEFT JOIN checkouts k ON k.checkout_id = p.checkout_id
        WHERE p.business_id = :business_id
            AND coalesce(o.customer_id, k.customer_id) = :customer_id)"""
# Blank the provider events of the customer's payments that are decided.
BLANK_BODIES: Final = text(f"""
    UPDATE provider_events SET body = '' WHERE event_number IN (
        SELECT event_number {_BODIES} AND status IN ('applied', 'ignored'))
""")
# Count those that are left: they wait for a person or a worker.
COUNT_BODIES: Final = text(f"SELECT count(*) {_BODIES}")
# Blank refused events of the customer that were replayed.
BLANK_REFUSED: Final = text("""
    UPDATE refused_events SET payload = '{}'
    WHERE business_id = :business_id AND customer_id = :customer_id
        AND replayed_at IS NOT NULL AND payload::text <> '{}'
""")
# Count the refused events of the customer that wait for a person.
COUNT_REFUSED: Final = text("""
    SELECT count(*) FROM refused_events
    WHERE business_id = :business_id AND customer_id = :customer_id AND replayed_at IS NULL
""")
