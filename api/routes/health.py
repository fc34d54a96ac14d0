"""Probes for a balancer, and the counters for Prometheus: without a key."""

from typing import Final, Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from api.context import Scoped
from worker.health import metrics_text

router: Final = APIRouter(tags=["health"])


class Health(BaseModel):
    """Whether all can be served; `missing` names what is not there or fails, `causes` why.

    `causes`: by the part that a server fails: `api`, or a task of the workers.
    """

    status: Literal["ok", "unready"]
    missing: list[str] = []
    causes: dict[str, str] = {}


@router.get("/livez", operation_id="livez")
def livez() -> Health:
    """Tell that the process answers."""
    return Health(status="ok")


@router.get("/readyz", operation_id="readyz", responses={503: {"model": Health}})
async def readyz(scope: Scoped, response: Response) -> Health:
    """Tell whether Postgres, with this version's schema, and Redis work; or what is wrong.

    `shards`: usage is buffered in another number of shards than this process is set to.
    `durability`: Redis cannot promise what `strict` asks for; `causes` says why.
    `wall`: row-level security does not bind this process, so tenants are not kept apart twice.
    While a cause is told nothing is lost: events are still taken, and what cannot be written waits.
    """
    seen = await scope.readiness.look()
    if seen.missing:
        response.status_code = 503
    status: Literal["ok", "unready"] = "unready" if seen.missing else "ok"
    return Health(status=status, missing=list(seen.missing), causes=dict(seen.causes))


@router.get("/metrics", operation_id="metrics", response_class=Response)
def metrics(scope: Scoped) -> Response:
    """Return the counters of all processes of this machine, in Prometheus text format."""
    folder = scope.settings.metrics_dir
    text = metrics_text(folder) if folder else generate_latest()
    return Response(text, media_type=CONTENT_TYPE_LATEST)
