"""Faults that a person knows of and has accepted by name: still listed, no longer counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from metering.ids import FaultId
from metering.ledger.verify import statements
from metering.ledger.verify.fault import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedFault:
    """A fault as it was when it was accepted, and why it was."""

    fault_id: FaultId
    invariant: str
    detail: str
    reason: str
    accepted_at: datetime


def accepted_faults(conn: Connection) -> Sequence[AcceptedFault]:
    """Return all faults that were accepted, oldest first."""
    rows = conn.execute(statements.ACCEPTED)
    return [AcceptedFault(**row._mapping) for row in rows]  # noqa: SLF001


def accept_fault(conn: Connection, fault: Fault, reason: str) -> None:
    """Accept a fault. Should it change, it is another one, and not accepted."""
    values = {"fault_id": fault.fault_id, "reason": reason}
    values |= {"invariant": fault.invariant, "detail": fault.detail}
    conn.execute(statements.ACCEPT, values)
    conn.execute(statements.MAKE_WALK_DUE)
