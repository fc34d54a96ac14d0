"""Erase the personal data of a customer; the ledger stays. docs/operating.md says where it lies.

A second run changes nothing. Data that still waits for a decision is kept, because money depends on
it, and counted. Erase again when it is decided.
"""

from dataclasses import dataclass

from sqlalchemy import Connection

from metering.erasure import statements
from metering.errors import NotFoundError
from metering.ids import BusinessId, CustomerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """The provider events and refused events that a run blanked, and those that wait."""

    customer_id: CustomerId
    bodies_blanked: int
    refused_blanked: int
    bodies_waiting: int
    refused_waiting: int

    @property
    def is_complete(self) -> bool:
        """Tell whether nothing of the person is left that could be erased."""
        return not self.bodies_waiting and not self.refused_waiting


def erase_customer(conn: Connection, business_id: BusinessId, customer_id: CustomerId) -> Erasure:
    """Erase the personal data of a customer of this business; entries and balances stay.

    Raises:
        NotFoundError: the business has no such customer.

    """
    values = {"business_id": business_id, "customer_id": customer_id}
    if "\0" in customer_id or not conn.execute(statements.BLANK_CUSTOMER, values).rowcount:
        raise NotFoundError("customer", customer_id)
    conn.execute(statements.DELETE_TOP_UPS, values)
    return Erasure(
        customer_id=customer_id,
        bodies_blanked=conn.execute(statements.BLANK_BODIES, values).rowcount,
        refused_blanked=conn.execute(statements.BLANK_REFUSED, values).rowcount,
        bodies_waiting=conn.execute(statements.COUNT_BODIES, values).scalar_one(),
        refused_waiting=conn.execute(statements.COUNT_REFUSED, values).scalar_one(),
    )
