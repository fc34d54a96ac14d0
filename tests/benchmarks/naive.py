"""The usual design with a queue: one Celery task per event, one transaction per task.

It has the same ledger and database, late acknowledgement and the default prefetch. The drain must
be much faster.
"""

from celery import Celery

from metering.buffer.chunk import BufferedEvent
from metering.debit.batch import key_event
from metering.debit.price import price_events
from metering.ids import BusinessId, CustomerId
from metering.ledger.entry import Posting
from metering.ledger.post import post
from metering.ledger.wallets import payers
from metering.rate_card.card import exact_cost
from metering.rate_card.cards import RateCards
from worker.context import context
from worker.settings import settings

app = Celery("naive")
app.conf.update(
    broker_url=settings().celery_broker_url(),
    task_ignore_result=True,
    task_acks_late=True,
    worker_hijack_root_logger=False,
)
_cards = RateCards(("USD", "INR"))


@app.task(name="naive.charge")
def charge(business_id: str, fields: list) -> None:  # type: ignore[type-arg]
    """Charge one event: its key, its row, its entry, in one transaction."""
    keyed = key_event(BusinessId(business_id), BufferedEvent(*fields))
    with context().transaction() as conn:
        cards = _cards.current(conn, _cards.versions(conn, {keyed.business_id}))
        payer_of = payers(conn, {CustomerId(keyed.customer_id)})
        ((event,), _) = price_events(cards, payer_of, [keyed])
        batch_id = conn.exec_driver_sql(
            "INSERT INTO usage_batches (shard, epoch, first_stream_id, last_stream_id,"
            " posted_count, duplicate_count, refused_count, unmetered_count, replayed_count)"
            " VALUES (0, 'naive', '0', '0', 1, 0, 0, 0, 0) RETURNING batch_id"
        ).scalar_one()
        taken = conn.exec_driver_sql(
            "INSERT INTO usage_event_keys VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            (keyed.key, keyed.digest, batch_id),
        ).rowcount
        if not taken or event.wallet_id is None:
            return
        conn.exec_driver_sql(
            "INSERT INTO usage_events VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (business_id, *keyed.event[:4], keyed.metadata_json, event.currency,
             exact_cost(event.mantissa, event.scale), batch_id),
        )  # fmt: skip
        posting = Posting(
            wallet_id=event.wallet_id,
            kind="usage",
            is_credit=False,
            exact_cost=exact_cost(event.mantissa, event.scale),
            batch_id=batch_id,
            event_count=1,
        )
        post(conn, [posting])
