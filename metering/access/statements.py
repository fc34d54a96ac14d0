"""All SQL of the API keys."""

from typing import Final

from sqlalchemy import text

# Add a key, if its business exists.
INSERT_KEY: Final = text("""
    INSERT INTO api_keys (key_id, business_id, name, prefix, secret_hash, scopes)
    SELECT :key_id, business_id, :name, :prefix, :secret_hash, CAST(:scopes AS text[])
    FROM businesses WHERE business_id = :business_id
""")
# The keys of a business, without the hashes of their secrets.
KEYS: Final = text("""
    SELECT key_id, business_id, name, prefix, scopes, created_at, last_used_at, revoked_at
    FROM api_keys WHERE business_id = :business_id ORDER BY created_at DESC, key_id DESC
""")
# Revoke a key. A key that is revoked already keeps its time.
REVOKE_KEY: Final = text("""
    UPDATE api_keys SET revoked_at = coalesce(revoked_at, now())
    WHERE business_id = :business_id AND key_id = :key_id
""")
# The key with this prefix of any business, unless it is revoked.
KEY_OF_PREFIX: Final = text("SELECT * FROM api_key_of(:prefix)")
# Store that a key was used now. SKIP LOCKED: of many requests at once one does it.
NOTE_USE: Final = text("""
    UPDATE api_keys SET last_used_at = now() WHERE key_id = (
        SELECT key_id FROM api_keys WHERE business_id = :business_id AND key_id = :key_id
            AND (last_used_at IS NULL
                OR last_used_at <= now() - make_interval(secs => :fresh_s))
        FOR NO KEY UPDATE SKIP LOCKED)
""")
