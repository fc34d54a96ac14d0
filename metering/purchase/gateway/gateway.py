"""What a payment provider can be asked for."""

from dataclasses import dataclass
from typing import Literal, Protocol

from metering.ids import ChargeId, CustomerId


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """What is to be charged, in minor units of `currency`; its id is the idempotency key.

    `payment_method` None: the customer pays on a page of the provider.
    """

    charge_id: ChargeId
    amount_minor: int
    currency: str
    customer_id: CustomerId
    email: str
    name: str
    payment_method: str | None
    description: str
    return_url: str | None


@dataclass(frozen=True, slots=True)
class ChargeAnswer:
    """What has become of a charge. `url`: where the customer pays."""

    status: Literal["pending", "succeeded", "failed"]
    payment_id: str | None
    url: str | None = None
    failure: str | None = None


class PaymentGateway(Protocol):
    """A provider's account.

    Each call raises `GatewayUnavailableError` where the outcome is unknown, and
    `GatewayRefusedError` where asking again changes nothing.
    """

    def start(self, charge: ChargeRequest, *, is_repeated: bool) -> ChargeAnswer:
        """Charge, once per `charge_id`."""

    def look_up(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer | None:
        """Return what has become of a charge; None: the provider knows of none."""

    def cancel(self, charge: ChargeRequest, payment_id: str | None) -> ChargeAnswer:
        """Stop a pending charge; return what has become of it."""
