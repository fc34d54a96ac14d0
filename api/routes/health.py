"""Probes for a balancer, and the counters for Prometheus: without a key."""

from typing import Final, Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from api.scope import Scoped
from worker.health import metrics_text, postgres_answers, redis_answers

router: Final = APIRouter(tags=["health"])


class Health(BaseModel):
    """Whether this process can serve; `missing` names what it lacks."""

    status: Literal["ok", "unready"]
    missing: list[str] = []


@router.get("/livez", operation_id="livez")
def livez() -> Health:
    """Tell that the process answers."""
    return Health(status="ok")


@router.get("/readyz", operation_id="readyz", responses={503: {"model": Health}})
def readyz(scope: Scoped, response: Response) -> Health:
    """Tell whether Postgres, with this version's schema, and Redis answer; or what is missing.

    `shards`: usage is buffered in another number of shards than this process is set to.
    `wall`: row-level security does not bind this process, so tenants are not kept apart twice.
    """
    config = scope.settings
    missing = []
    if not postgres_answers(config.database_url.get_secret_value()):
        missing.append("postgres")
    else:
        missing += scope.unprepared()
    if not redis_answers(config.redis_url.get_secret_value()):
        missing.append("redis")
    else:
        missing += scope.refused_by_buffer()
    if missing:
        response.status_code = 503
    return Health(status="unready" if missing else "ok", missing=missing)


@router.get("/metrics", operation_id="metrics", response_class=Response)
def metrics(scope: Scoped) -> Response:
    """Return the counters of all processes of this machine, in Prometheus text format."""
    folder = scope.settings.metrics_dir
    text = metrics_text(folder) if folder else generate_latest()
    return Response(text, media_type=CONTENT_TYPE_LATEST)
