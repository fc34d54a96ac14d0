"""The public API of a producer: it turns API traffic into checked usage events.

`Meter` records events in an API process. `MeterMiddleware` and `MeterWsgiMiddleware` meter its
requests; `usage` adds quantities inside a request. `record_usage` and `record_body` write to a
buffer directly. None of them imports SQLAlchemy or Celery.
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
