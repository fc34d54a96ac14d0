"""What a business has decided: on credit that is called back, on usage that nothing prices."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from metering.errors import NotFoundError
from metering.ids import BusinessId
from metering.ledger import statements
from metering.rate_card.card import OnUnmetered

# `debt`: the balance goes below zero. `stop_at_zero`: the shortfall is told, and nobody owes it.
ReversalPolicy = Literal["debt", "stop_at_zero"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Business:
    """A business as stored."""

    business_id: BusinessId
    name: str
    reversal_policy: ReversalPolicy
    on_unmetered: OnUnmetered
    created_at: datetime


class BusinessChange(BaseModel):
    """What is to change; what is left out stays."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reversal_policy: ReversalPolicy | None = None
    on_unmetered: OnUnmetered | None = None


class BusinessName(NamedTuple):
    """A business in a list of all."""

    business_id: BusinessId
    name: str
    created_at: datetime


def list_businesses(conn: Connection) -> list[BusinessName]:
    """Return all businesses, oldest first."""
    return [BusinessName(*row) for row in conn.execute(statements.BUSINESSES)]


def get_business(conn: Connection, business_id: BusinessId) -> Business:
    """Return a business.

    Raises:
        NotFoundError: there is no such business.

    """
    row = conn.execute(statements.BUSINESS, {"business_id": business_id}).one_or_none()
    if row is None:
        raise NotFoundError("business", business_id)
    return Business(**row._mapping)  # noqa: SLF001


def change_business(conn: Connection, business_id: BusinessId, change: BusinessChange) -> Business:
    """Change what a business has decided, for what comes from now on; return it.

    Raises:
        NotFoundError: there is no such business.

    """
    policies = (
        (statements.SET_REVERSAL_POLICY, change.reversal_policy),
        (statements.SET_ON_UNMETERED, change.on_unmetered),
    )
    for statement, policy in policies:
        if policy is not None:
            conn.execute(statement, {"business_id": business_id, "policy": policy})
    return get_business(conn, business_id)
