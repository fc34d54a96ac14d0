"""Ids: a prefix that names the kind, then 26 characters that sort by time of creation."""

import os
import time
from datetime import datetime
from typing import Final, NewType

from ulid import ULID
from ulid.base32 import ENCODE as ENCODING

BusinessId = NewType("BusinessId", str)  # bus_…
CustomerId = NewType("CustomerId", str)  # cus_…
WalletId = NewType("WalletId", str)  # wal_…
EntryId = NewType("EntryId", str)  # ent_…
MeterId = NewType("MeterId", str)  # mtr_…
PriceId = NewType("PriceId", str)  # prc_…
RuleId = NewType("RuleId", str)  # rul_…
PurchaseId = NewType("PurchaseId", str)  # pur_…
EndpointId = NewType("EndpointId", str)  # whk_…
WebhookEventId = NewType("WebhookEventId", str)  # msg_…
KeyId = NewType("KeyId", str)  # key_…
LotId = NewType("LotId", str)  # lot_…
PackageId = NewType("PackageId", str)  # pkg_…
AccountId = NewType("AccountId", str)  # pac_…, of a payment provider
ChargeId = NewType("ChargeId", str)  # chg_…
CheckoutId = NewType("CheckoutId", str)  # chk_…
FaultId = NewType("FaultId", str)  # flt_…
RefusalId = NewType("RefusalId", int)
BatchId = NewType("BatchId", int)
ProviderEventNumber = NewType("ProviderEventNumber", int)
EventId = NewType("EventId", str)  # the producer's own, unique within its business
Currency = NewType("Currency", str)  # ISO 4217, upper case


# A ULID: 10 characters of time, then 16 of 80 random bits, five bits a character.
TIME_CHARS: Final = 10
RANDOM_BYTES: Final = 10
_PAIRS: Final = tuple(a + b for a in ENCODING for b in ENCODING)


def new_ulid() -> str:
    """Return a ULID: 26 characters, of the clock to the ms and 80 random bits.

    Not `ULID()`: that counts up from its last value within a millisecond, and so do two processes
    that were forked within it; two events with one id would be charged as one.
    """
    return str(ULID((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10)))


def new_id(prefix: str) -> str:
    """Return `prefix`, `_` and a ULID: unique everywhere, in order of creation to the ms."""
    return f"{prefix}_{new_ulid()}"


def new_ids(prefix: str, count: int) -> list[str]:
    """Return many ids of this moment, each at a tenth of what `new_id` costs."""
    if not count:
        return []
    head = f"{prefix}_{new_ulid()[:TIME_CHARS]}"
    source = os.urandom(RANDOM_BYTES * count)
    ids = []
    for at in range(0, len(source), RANDOM_BYTES):
        bits = int.from_bytes(source[at : at + RANDOM_BYTES], "big")
        ids.append(
            f"{head}{_PAIRS[bits >> 70]}{_PAIRS[bits >> 60 & 1023]}{_PAIRS[bits >> 50 & 1023]}"
            f"{_PAIRS[bits >> 40 & 1023]}{_PAIRS[bits >> 30 & 1023]}{_PAIRS[bits >> 20 & 1023]}"
            f"{_PAIRS[bits >> 10 & 1023]}{_PAIRS[bits & 1023]}"
        )
    return ids


def made_at(id_: str) -> datetime:
    """Return when `new_id` made an id, to the ms, by the clock of its process.

    Raises: ValueError if the text is no such id.
    """
    return ULID.from_str(id_.rpartition("_")[2]).datetime
