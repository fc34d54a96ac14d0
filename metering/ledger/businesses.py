"""Businesses, and their policies: on credit that is called back, on usage that nothing prices."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from metering.db import get_one, rows
from metering.errors import FieldProblem, InvalidInputError
from metering.fields import NAME_CHARS_MAX
from metering.ids import BusinessId, new_id
from metering.ledger import statements
from metering.rate_card.card import OnUnmetered

# `debt`: the balance goes below zero. `stop_at_zero`: nobody owes the shortfall, which is reported.
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
    """The policies to change; the others stay."""

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
    return rows(BusinessName, conn.execute(statements.BUSINESSES))


def create_business(conn: Connection, name: str) -> BusinessId:
    """Create a business; return its id.

    Raises: InvalidInputError if the name is blank or too long.
    """
    name = name.strip()
    if not 0 < len(name) <= NAME_CHARS_MAX:
        raise InvalidInputError(FieldProblem("name", f"must have 1 to {NAME_CHARS_MAX} characters"))
    business_id = BusinessId(new_id("bus"))
    conn.execute(statements.INSERT_BUSINESS, {"business_id": business_id, "name": name})
    return business_id


def get_business(conn: Connection, business_id: BusinessId) -> Business:
    """Return a business. Raises: NotFoundError if there is none."""
    found = conn.execute(statements.BUSINESS, {"business_id": business_id})
    return get_one(Business, found, "business", business_id)


def change_business(conn: Connection, business_id: BusinessId, change: BusinessChange) -> Business:
    """Change policies from now on; return the business.

    Raises: NotFoundError if there is none.
    """
    for statement, policy in (
        (statements.SET_REVERSAL_POLICY, change.reversal_policy),
        (statements.SET_ON_UNMETERED, change.on_unmetered),
    ):
        if policy is not None:
            conn.execute(statement, {"business_id": business_id, "policy": policy})
    return get_business(conn, business_id)
