"""The business that the key belongs to, and its policies."""

from datetime import datetime
from typing import Final

from fastapi import APIRouter

from api.tenant import Reader, Writer
from api.views import View
from metering.ids import BusinessId
from metering.ledger.businesses import (
    Business,
    BusinessChange,
    ReversalPolicy,
    change_business,
    get_business,
)
from metering.rate_card.card import OnUnmetered

router: Final = APIRouter(prefix="/business", tags=["business"])


class BusinessOut(View):
    """A business. `reversal_policy`: what happens to credit that is called back but already spent.

    `on_unmetered`: usage without a meter or price is refused, or kept without a charge.
    """

    business_id: BusinessId
    name: str
    reversal_policy: ReversalPolicy
    on_unmetered: OnUnmetered
    created_at: datetime


@router.get("", response_model=BusinessOut)
def show_business(tenant: Reader) -> Business:
    """Return the business."""
    return tenant.run(get_business)


@router.patch("", response_model=BusinessOut)
def update_business(tenant: Writer, change: BusinessChange) -> Business:
    """Change the policies of the business, from now on."""
    return tenant.run(change_business, change)
