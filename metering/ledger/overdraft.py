"""How far below zero a wallet may go by debits that are not usage.

Usage has happened and is always debited. The limit is no credit, so no alert and no top-up looks at
it.
"""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from metering.ids import BusinessId, CustomerId
from metering.ledger import statements
from metering.ledger.wallets import wallet_of

# Far below 64 bits, so that a balance and its limit have a sum.
OVERDRAFT_MAX: Final = 10**15


class Overdraft(BaseModel):
    """How far below zero a wallet may go, in minor units of its currency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(strict=True, ge=0, le=OVERDRAFT_MAX)]


def set_overdraft(
    conn: Connection,
    business_id: BusinessId,
    customer_id: CustomerId,
    currency: str,
    new: Overdraft,
) -> None:
    """Set how far below zero a wallet may go; debt beyond a smaller limit stays what it is.

    Raises:
        NotFoundError, UnsupportedCurrencyError: there is no such wallet.

    """
    wallet_id = wallet_of(conn, business_id, customer_id, currency).wallet_id
    values = {"wallet_id": wallet_id, "limit_minor": new.limit}
    conn.execute(statements.SET_OVERDRAFT, values)
