"""All SQL of checkouts, a sentence each."""

from typing import Final

from sqlalchemy import text

from metering.purchase.statements import PAYMENT_COLUMNS

# The checkout that an idempotency key made before.
CHECKOUT_BY_KEY: Final = text("""
    SELECT checkout_id, request_digest FROM checkouts
    WHERE business_id = :business_id AND idempotency_key = :idempotency_key
""")
# Store a checkout. If credit pays for all of it, it is completed already.
INSERT_CHECKOUT: Final = text("""
    INSERT INTO checkouts (checkout_id, business_id, customer_id, currency, amount_minor,
        credit_minor, payment_minor, status, idempotency_key, request_digest, debit_entry_id,
        expires_at, ended_at)
    VALUES (:checkout_id, :business_id, :customer_id, :currency, :amount_minor,
        :credit_minor, :payment_minor, :status, :idempotency_key, :request_digest, :debit_entry_id,
        clock_timestamp() + make_interval(secs => :ttl_s),
        CASE WHEN :status <> 'pending' THEN clock_timestamp() END)
""")
_CHECKOUT: Final = """k.checkout_id, k.business_id, k.customer_id, k.currency, k.amount_minor,
    k.credit_minor, k.payment_minor, k.status, k.idempotency_key, k.debit_entry_id,
    k.release_entry_id, coalesce(k.failure, c.failure) AS failure, k.expires_at, k.created_at,
    k.ended_at, c.charge_id, c.account_id, c.payment_id, c.url AS payment_url"""
_CHECKOUTS: Final = f"""SELECT {_CHECKOUT} FROM checkouts k
    LEFT JOIN charges c ON c.checkout_id = k.checkout_id"""
CHECKOUT: Final = text(
    f"{_CHECKOUTS} WHERE k.business_id = :business_id AND k.checkout_id = :checkout_id"
)
# A page of the checkouts of a customer, the newest first.
CHECKOUT_PAGE: Final = text(f"""
    {_CHECKOUTS} WHERE k.business_id = :business_id AND k.customer_id = :customer_id
        AND (CAST(:after AS text) IS NULL OR k.checkout_id < :after)
    ORDER BY k.checkout_id DESC LIMIT :page OFFSET :offset
""")
# Lock a checkout, after its charge: of two processes that update it, the second finds it done. NO
# KEY UPDATE, so that a payment of it can be stored meanwhile (a foreign-key check).
LOCK_CHECKOUT: Final = text(
    f"{_CHECKOUTS} WHERE k.checkout_id = :checkout_id FOR NO KEY UPDATE OF k"
)
# The payments of a checkout, the earliest first.
PAYMENTS: Final = text(f"""
    SELECT {PAYMENT_COLUMNS} FROM payments
    WHERE checkout_id = :checkout_id ORDER BY occurred_at, payment_id
""")
END_CHECKOUT: Final = text("""
    UPDATE checkouts SET status = :status, release_entry_id = :release_entry_id,
        failure = :failure, ended_at = clock_timestamp()
    WHERE checkout_id = :checkout_id
""")
# Lock a payment that came too late for its checkout. SKIP LOCKED: no row if another process is
# storing a fact of it; that process updates the checkout afterwards.
LOCK_LATE: Final = text("""
    SELECT 1 FROM payments WHERE business_id = :business_id AND provider = :provider
        AND payment_id = :payment_id AND checkout_id = :checkout_id FOR NO KEY UPDATE SKIP LOCKED
""")
# Let it pay for a purchase instead.
MOVE_PAYMENT: Final = text("""
    UPDATE payments SET checkout_id = NULL, purchase_id = :purchase_id, parked_reason = NULL
    WHERE business_id = :business_id AND provider = :provider AND payment_id = :payment_id
""")
