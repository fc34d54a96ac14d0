"""Probes for a load balancer, and metrics for Prometheus: without a key."""

from typing import Final, Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from api.context import Context
from worker.metrics import metrics_text

router: Final = APIRouter(tags=["health"])


class Health(BaseModel):
    """Whether everything works; `missing` names what is missing or fails, `causes` why.

    `causes`: by the part that met the fault: `api`, or a task of the workers.
    """

    status: Literal["ok", "unready"]
    missing: list[str] = []
    causes: dict[str, str] = {}


@router.get("/livez", operation_id="livez")
def livez() -> Health:
    """Tell that the process answers."""
    return Health(status="ok")


@router.get("/readyz", operation_id="readyz", responses={503: {"model": Health}})
async def readyz(context: Context, response: Response) -> Health:
    """Tell whether Postgres, with this version's schema, and Redis work; or what is wrong.

    `shards`: usage is buffered in another number of shards than this process is set to.
    `durability`: Redis cannot promise what `strict` requires; see `causes`.
    `wall`: row-level security does not bind this process, so one of the two walls between tenants
    is missing.
    No fault loses anything: events are still taken, and wait until they can be written.
    """
    seen = await context.readiness.look()
    if seen.missing:
        response.status_code = 503
    status: Literal["ok", "unready"] = "unready" if seen.missing else "ok"
    return Health(status=status, missing=list(seen.missing), causes=dict(seen.causes))


@router.get("/metrics", operation_id="metrics", response_class=Response)
def metrics(context: Context) -> Response:
    """Return the metrics of all processes of this machine, in Prometheus text format."""
    folder = context.settings.metrics_dir
    text = metrics_text(folder) if folder else generate_latest()
    return Response(text, media_type=CONTENT_TYPE_LATEST)
