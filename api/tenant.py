"""The business that a request acts for, and the transactions that its handler runs in."""

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Concatenate, Final, ParamSpec, TypeVar

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool

from api.auth import require
from api.context import ApiContext
from api.parameters import check_query
from metering.db import has_given_way
from metering.ids import BusinessId
from metering.json_keys import check_keys

ATTEMPTS_MAX: Final = 3
BACK_OFF_S: Final = 0.02
# A larger body is looked at in a thread, so that it delays no other request.
LARGE_BODY_BYTES: Final = 64 * 1024

P = ParamSpec("P")
T = TypeVar("T")

_bearer = HTTPBearer(auto_error=False, description="An API key of a business: `gk_…`.")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A business, and what its requests work with."""

    context: ApiContext
    business_id: BusinessId

    def transaction(self) -> AbstractContextManager[Connection]:
        """Open a transaction that sees the rows of this business only."""
        return self.context.sessions.tenant(self.business_id)

    def run(
        self,
        work: Callable[Concatenate[Connection, BusinessId, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return `work(conn, business_id, *args, **kwargs)`, done in one transaction.

        It is done again if Postgres rolled it back for the sake of another transaction. If `work`
        raises, nothing is written.
        """
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                with self.transaction() as conn:
                    return work(conn, self.business_id, *args, **kwargs)
            except DBAPIError as error:
                if attempt == ATTEMPTS_MAX or not has_given_way(error):
                    raise
                time.sleep(random.uniform(0, attempt * BACK_OFF_S))  # noqa: S311 - no secret
        raise AssertionError("the last attempt returns or raises")


# Dependencies are async although they await nothing: FastAPI runs a plain function in a thread,
# which takes longer than the function itself.


async def _tenant(
    scopes: SecurityScopes,
    request: Request,
    _declared: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Tenant:
    principal = require(request.scope, *scopes.scopes)
    check_query(request)
    if request.scope["route"].body_field is not None:
        body = await request.body()
        if len(body) > LARGE_BODY_BYTES:
            await run_in_threadpool(check_keys, body)
        else:
            check_keys(body)
    return Tenant(request.app.state.context, principal.business_id)


Reader = Annotated[Tenant, Security(_tenant, scopes=["read"])]
Writer = Annotated[Tenant, Security(_tenant, scopes=["write"])]
Ingester = Annotated[Tenant, Security(_tenant, scopes=["ingest"])]
