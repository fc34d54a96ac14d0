"""API traffic becomes checked usage events: what a product imports.

`Meter` inside an API process; `MeterMiddleware` and `MeterWsgiMiddleware` around its requests,
with `usage` inside them; `record_usage` and `record_body` for an edge that holds a buffer of its
own. Light: neither SQLAlchemy nor Celery comes along.
"""

from metering.accept.client.asgi import MeterMiddleware
from metering.accept.client.exchange import RequestFacts, Usage, usage
from metering.accept.client.meter import Meter
from metering.accept.client.pending import MeterStats
from metering.accept.client.wsgi import MeterWsgiMiddleware
from metering.accept.event import AcceptLimits, UsageEvent
from metering.accept.record import Accepted, record_body, record_usage
from metering.accept.summed import Quantities, publish_quantities

__all__ = [
    "AcceptLimits",
    "Accepted",
    "Meter",
    "MeterMiddleware",
    "MeterStats",
    "MeterWsgiMiddleware",
    "Quantities",
    "RequestFacts",
    "Usage",
    "UsageEvent",
    "publish_quantities",
    "record_body",
    "record_usage",
    "usage",
]
