"""The business whose key it is, and what it has decided."""

from datetime import datetime
from typing import Final

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from api.auth import Reader, Writer
from api.context import Scoped
from metering.ids import BusinessId
from metering.ledger.businesses import BusinessChange, ReversalPolicy, change_business, get_business
from metering.rate_card.card import OnUnmetered

router: Final = APIRouter(prefix="/business", tags=["business"])


class BusinessOut(BaseModel):
    """A business. `reversal_policy`: what becomes of credit that is called back but spent.

    `on_unmetered`: usage that no meter or price covers is refused, or kept without a charge.
    """

    model_config = ConfigDict(from_attributes=True)

    business_id: BusinessId
    name: str
    reversal_policy: ReversalPolicy
    on_unmetered: OnUnmetered
    created_at: datetime


@router.get("")
def show_business(caller: Reader, scope: Scoped) -> BusinessOut:
    """Return the business."""
    found = scope.run(caller.business_id, lambda conn: get_business(conn, caller.business_id))
    return BusinessOut.model_validate(found)


@router.patch("")
def update_business(caller: Writer, scope: Scoped, change: BusinessChange) -> BusinessOut:
    """Change what it has decided, for what comes from now on."""
    changed = scope.run(
        caller.business_id, lambda conn: change_business(conn, caller.business_id, change)
    )
    return BusinessOut.model_validate(changed)
