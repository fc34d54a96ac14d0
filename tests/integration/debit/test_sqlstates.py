"""Every class of SQLSTATE at every statement: committed once, waiting, or refused with a reason."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import httpx
import psycopg
import pytest
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from metering.buffer.keys import Shard
from metering.buffer.shard import shard_of
from metering.debit.drain import drain_shard
from metering.debit.resources import Drain
from metering.ids import ProviderEventNumber
from metering.payment.inbox import EventFilter, ProviderEvent, page_of_events
from metering.purchase.purchases import NewPurchase, order_purchase
from metering.rate_card.cards import RateCards
from support.checkout_driver import CheckoutDriver
from support.edge import Api
from support.provider_driver import ProviderDriver
from support.providers import Stripe
from support.sqlstates import DATA, LOST, Injection, all_classes, injected
from support.tenant import CURRENCIES, Shop, event

FAULTS = (DBAPIError, psycopg.Error)
CLASSES = [*all_classes(), LOST]
# Each class is tried at one in so many statements, shifted from class to class: at all of them with
# `--every-statement`, else at as many as the tier has time for. These are tried at every statement.
THOROUGH = {"53100", "23514", LOST}
THOROUGH_IF_SLOW = {"40P01"}
STRIDE, STRIDE_IF_SLOW = 48, 16
FIRST_AT_MOST = 16  # whatever is done here has more statements, so each class is tried


@dataclass
class Trials:
    """The trials in turn: each class at some statements, until there are no more statements."""

    monkeypatch: pytest.MonkeyPatch
    stride: int
    thorough: Collection[str]
    last: Injection = field(default_factory=lambda: Injection("", 0))

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for number, sqlstate in enumerate(CLASSES):
            stride = 1 if sqlstate in self.thorough else self.stride
            for at in count(1 + number % min(stride, FIRST_AT_MOST), stride):
                yield sqlstate, at
                if not self.last.is_done:
                    break

    def fail(self, sqlstate: str, at: int, work: Callable[[], object]) -> None:
        """Do `work` with an error at one statement. If it raises anything else, the test fails."""
        with injected(self.monkeypatch, sqlstate, at) as self.last:
            try:
                work()
            except FAULTS:
                assert self.last.is_done


@pytest.fixture
def trials(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trials]:
    with capture_logs():  # to print the traceback of a refusal with its variables takes seconds
        if request.config.getoption("every_statement"):
            yield Trials(monkeypatch, 1, THOROUGH)
        elif request.config.getoption("slow"):
            yield Trials(monkeypatch, STRIDE_IF_SLOW, THOROUGH | THOROUGH_IF_SLOW)
        else:
            yield Trials(monkeypatch, STRIDE, THOROUGH)


def is_of_data(sqlstate: str) -> bool:
    return sqlstate[:2] in DATA


def test_a_drain_with_an_error_at_each_statement(shop: Shop, trials: Trials) -> None:
    shop.meter("tokens", {"USD": "1"})
    drain = Drain(shop.sessions.transaction, shop.buffer, RateCards(CURRENCIES), 1000)
    shard = Shard(shard_of(shop.business_id, shop.customers[0], len(shop.buffer.shards)))
    sent = refused = 0
    for sqlstate, at in trials:
        shop.send(event(shop.customers[0]), event(shop.customers[0]))
        sent += 2
        trials.fail(sqlstate, at, lambda: drain_shard(drain, shard, 60))
        drain_shard(drain, shard, 60)
        refused_before = refused
        ((refused,),) = shop.rows("SELECT count(*) FROM refused_events")
        posted = -shop.wallet().balance_minor

        assert (posted + refused, shop.buffer.backlog().events) == (sent, 0), (sqlstate, at)
        assert is_of_data(sqlstate) or refused == refused_before, (sqlstate, at)

    assert shop.rows("SELECT DISTINCT reason, detail FROM refused_events") == [
        ("unpostable", "injected")
    ]
    assert shop.faults() == []


def test_a_provider_event_with_an_error_at_each_statement(shop: Shop, trials: Trials) -> None:
    driver = ProviderDriver.open(shop, Stripe(), credit=7)
    credited = 0
    for sqlstate, at in trials:
        order_again(driver)
        number = driver.receive(driver.paid())
        trials.fail(sqlstate, at, partial(driver.process, number))
        found = event_of(driver, number)
        driver.sweep()
        credited += 7

        if found.status == "received":
            assert is_of_data(sqlstate) or found.attempts == 0, (sqlstate, at)
        assert driver.purchase().status == "settled", (sqlstate, at)
        assert shop.wallet().balance_minor == credited, (sqlstate, at)

    assert shop.faults() == []


def order_again(driver: ProviderDriver) -> None:
    """Let the next payment be for a new purchase."""
    shop = driver.shop
    new = NewPurchase.model_validate({"currency": "USD", "price": 1000, "credit": 7})
    with shop.sessions.transaction() as conn:
        bought = order_purchase(conn, shop.business_id, shop.customers[0], new)
    driver.purchase_id, driver.payment_id = bought.purchase_id, f"pi_{bought.purchase_id}"


def event_of(driver: ProviderDriver, number: ProviderEventNumber | None) -> ProviderEvent:
    with driver.shop.sessions.transaction() as conn:
        newest = page_of_events(conn, driver.shop.business_id, EventFilter(), page=1)
    assert [each.event_number for each in newest] == [number]
    return newest[0]


def test_a_charge_with_an_error_at_each_statement(shop: Shop, trials: Trials) -> None:
    driver = CheckoutDriver(shop)
    package = driver.package(price=500)
    for charges, (sqlstate, at) in enumerate(trials, start=1):
        low = 500 * charges - 499
        driver.rule(threshold=low, package_id=package, day_cap=10**6, month_cap=10**6)
        (charge_id,) = driver.start()
        trials.fail(sqlstate, at, partial(driver.run, charge_id))
        driver.run(charge_id)
        driver.run(charge_id)

        assert driver.charge(charge_id).status == "succeeded", (sqlstate, at)
        assert driver.provider.charged() == [500] * charges, (sqlstate, at)
        assert shop.wallet().balance_minor == 500 * charges, (sqlstate, at)

    assert shop.faults() == []


def test_a_write_over_http_with_an_error_at_each_statement(
    api: Api, shop: Shop, trials: Trials
) -> None:
    path = f"/customers/{shop.customers[0]}/wallets/ledger-entries"
    with api.client() as client:
        for writes, (sqlstate, at) in enumerate(trials, start=1):
            assert client.get("/business").is_success  # the key is known
            entry = {"amount": 5, "currency": "USD", "entry_type": "credit"}
            entry["idempotency_key"] = f"k-{writes}"
            answers: list[httpx.Response] = []
            trials.fail(sqlstate, at, lambda: answers.append(client.post(path, json=entry)))  # noqa: B023
            (answer,) = answers

            refusal = 422 if is_of_data(sqlstate) else 503
            assert answer.status_code == refusal or answer.is_success, (sqlstate, at)
            assert answer.status_code != 503 or int(answer.headers["Retry-After"]) >= 1
            assert client.post(path, json=entry).is_success
            assert shop.wallet().balance_minor == 5 * writes, (sqlstate, at)

    assert shop.faults() == []
