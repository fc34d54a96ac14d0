"""Faults that a person has accepted: still listed, no longer counted."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from metering.db import rows
from metering.ids import FaultId
from metering.invariants import Fault
from metering.verify import statements


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedFault:
    """A fault as it was when a person accepted it, and the reason."""

    fault_id: FaultId
    invariant: str
    detail: str
    reason: str
    accepted_at: datetime


def accepted_faults(conn: Connection) -> list[AcceptedFault]:
    """Return all accepted faults, oldest first."""
    return rows(AcceptedFault, conn.execute(statements.ACCEPTED))


def accept_fault(conn: Connection, fault: Fault, reason: str) -> None:
    """Accept a fault as it is now. If it changes, it is another fault, which is not accepted."""
    values = {"fault_id": fault.fault_id, "reason": reason}
    values |= {"invariant": fault.invariant, "detail": fault.detail}
    conn.execute(statements.ACCEPT, values)
    conn.execute(statements.MAKE_WALK_DUE)
