"""A process is killed between two steps of a charge: one payment and one credit remain.

A real stack charges at payment simulators that are processes too. A worker kills itself at the
named points of a charge, which are files. The charge that it had claimed comes back when the lease
is over. Tests do not wait for that: they move the charge into the past.
"""

import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from metering.access.keys import create_key
from metering.ids import AccountId, ChargeId
from metering.payment.charges.charge import LEASE_S
from metering.payment.checkouts.checkout import Checkout
from metering.payment.provider_account import NewAccount, connect_account
from support.checkout_driver import CheckoutDriver
from support.own_simulator import OwnSimulator, running_simulator
from support.tenant import Shop, shared_database
from support.tiers import mostly_slow
from support.traffic import frozen, wait_for
from worker.context import open_buffer
from worker.local.up import Stack
from worker.session import Sessions, make_engine
from worker.settings import settings_from

POINTS = ("after_claim", "after_charge", "after_record")
CHARGER = "worker_webhook"  # the role whose worker takes the queue of charges
WEBHOOKS = "/providers/stripe/webhooks"


@dataclass(frozen=True)
class Provider:
    """A simulator that is a process of its own, and the account at it."""

    simulator: OwnSimulator
    account_id: AccountId

    def payments(self) -> list[tuple[int, str]]:
        """All payments ever made: amount and status."""
        return [(each["amount"], each["status"]) for each in self.simulator.payments()]

    def has_made(self, count: int) -> bool:
        return len(self.payments()) >= count

    def untold(self) -> int:
        """How many events nobody has taken yet."""
        events = self.simulator.ask("GET", "events", limit=100)["data"]
        return sum(each["pending_webhooks"] for each in events)


@dataclass(frozen=True)
class Buyer:
    """A new customer, and what came of what it has paid since."""

    shop: Shop
    driver: CheckoutDriver
    provider: Provider
    earlier: int

    def runs_low(self, method: str) -> None:
        """Cross the threshold of a rule that buys 500 for 500."""
        self.shop.enter(150)
        self.driver.rule(100, method, account_id=self.driver.account_id)
        self.shop.enter(100, debit=True)

    def begin(self, method: str | None) -> Checkout:
        """Begin a checkout of 1,000, of which 300 are there."""
        self.shop.enter(300)
        new = self.driver.new(
            1000,
            method,
            account_id=self.driver.account_id,
            idempotency_key=self.shop.customers[0],
            return_url="https://shop.example/done",
        )
        return self.driver.begin(new).checkout

    def payments(self) -> list[tuple[int, str]]:
        return self.provider.payments()[self.earlier :]

    def bought(self) -> list[int]:
        """Every credit that a payment has brought."""
        entries = self.shop.entries()
        return [entry.amount_minor for entry in entries if entry.kind == "purchase"]

    def charge_id(self) -> ChargeId:
        ((charge_id,),) = self.shop.rows(
            f"SELECT charge_id FROM charges WHERE customer_id = '{self.shop.customers[0]}'"
        )
        return ChargeId(str(charge_id))

    def status(self) -> str:
        return self.driver.charge(self.charge_id()).status

    def lease_is_over(self) -> None:
        self.driver.age(self.charge_id(), LEASE_S)


@dataclass(frozen=True)
class Installation:
    """One for all kills: a stack, and a business with an account at each of two simulators."""

    stack: Stack
    shop: Shop
    failpoints: Path
    # Tells nobody of payments: as if each webhook were lost.
    quiet: Provider
    telling: Provider

    def buyer(self, provider: Provider) -> Buyer:
        shop = replace(self.shop, customers=[])
        with shop.sessions.transaction() as conn:
            shop.add_customer(conn)
        driver = CheckoutDriver(shop, account_id=provider.account_id)
        return Buyer(shop, driver, provider, len(provider.payments()))

    def unprocessed(self) -> int:
        """How many events of simulators wait to be processed."""
        waiting = "SELECT count(*) FROM provider_events WHERE status = 'received'"
        ((number,),) = self.shop.rows(waiting)
        return int(str(number))

    @contextmanager
    def killing(self, point: str) -> Iterator[None]:
        """Have a worker's process kill itself at a point; the worker then has another one."""
        failpoint = self.failpoints / point
        failpoint.touch()
        yield
        wait_for(lambda: not failpoint.exists())

    def kill(self, role: str) -> None:
        """Kill a process, and wait until the supervisor has replaced it."""
        pid = self.stack.pids[role]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.stack.pids.get(role, pid) != pid and not self.stack.missing())


@pytest.fixture(scope="module")
def installation(
    servers: Any, variables: Mapping[str, str], module_data_dir: Path
) -> Iterator[Installation]:
    failpoints = module_data_dir / "failpoints"
    failpoints.mkdir()
    with ExitStack() as running:
        name = running.enter_context(
            shared_database(servers.execute, servers.template, "charges_killed")
        )
        urls = {"DATABASE_URL": servers.url_of(name), "REDIS_URL": servers.credentials.redis_url}
        engine = make_engine(settings_from(urls))
        running.callback(engine.dispose)
        buffer = open_buffer(settings_from(urls))
        running.callback(buffer.redis.close)
        buffer.redis.flushall()
        shop = Shop.open(Sessions(engine), buffer, customers=0)
        overrides = {"GULLAK_FAILPOINT_DIR": str(failpoints), "GULLAK_CHARGE_RETRY_S": "1"}
        stack = running.enter_context(
            Stack(module_data_dir / "data", variables=variables, overrides={**urls, **overrides})
        )
        quiet = running.enter_context(running_simulator(module_data_dir / "quiet"))
        telling = running.enter_context(
            running_simulator(module_data_dir / "telling", webhook_url=stack.api_url + WEBHOOKS)
        )
        yield Installation(
            stack, shop, failpoints, opened(shop, quiet), opened(shop, telling, is_telling=True)
        )


def opened(shop: Shop, simulator: OwnSimulator, *, is_telling: bool = False) -> Provider:
    """Connect an account at a simulator."""
    new = NewAccount(
        provider="stripe",
        name="Main",
        webhook_secret=SecretStr(simulator.keys.webhook_secret) if is_telling else None,
        api_key=SecretStr(simulator.keys.api_key),
        base_url=simulator.url,
    )
    with shop.sessions.transaction() as conn:
        return Provider(simulator, connect_account(conn, shop.business_id, new).account_id)


# --- the worker -----------------------------------------------------------------------------------


@pytest.mark.parametrize("point", mostly_slow(POINTS, "after_charge"))
def test_a_top_up_whose_worker_is_killed_is_charged_once_and_credited_once(
    installation: Installation, point: str
) -> None:
    buyer = installation.buyer(installation.quiet)
    with installation.killing(point):
        buyer.runs_low("cus_1/pm_ok")
    if point == "after_charge":
        installation.kill(CHARGER)  # nothing of the worker is left
    assert buyer.payments() == [(500, "succeeded")] * (point != "after_claim")
    assert buyer.bought() == [500] * (point == "after_record")

    buyer.lease_is_over()

    wait_for(lambda: buyer.status() == "succeeded")
    assert buyer.payments() == [(500, "succeeded")]
    assert buyer.bought() == [500]
    assert installation.shop.faults() == []


@pytest.mark.slow
def test_a_charge_whose_worker_is_killed_is_tried_again_within_a_short_lease(
    installation: Installation,
) -> None:
    buyer = installation.buyer(installation.quiet)
    with installation.killing("after_charge"):
        buyer.runs_low("cus_1/pm_ok")
    assert buyer.bought() == []

    wait_for(lambda: buyer.status() == "succeeded", within_s=60)

    assert buyer.payments() == [(500, "succeeded")]
    assert buyer.bought() == [500]
    assert installation.shop.faults() == []


def test_a_decline_whose_worker_is_killed_counts_once(installation: Installation) -> None:
    buyer = installation.buyer(installation.quiet)
    with installation.killing("after_charge"):
        buyer.runs_low("cus_1/pm_declined")

    buyer.lease_is_over()

    wait_for(lambda: buyer.status() == "failed")
    assert buyer.payments() == [(500, "requires_payment_method")]
    assert buyer.driver.top_up_rule().declines == 1
    assert buyer.bought() == []
    assert installation.shop.faults() == []


def test_a_checkout_whose_worker_is_killed_is_charged_once_and_completed(
    installation: Installation,
) -> None:
    buyer = installation.buyer(installation.quiet)
    with installation.killing("after_charge"):
        checkout_id = buyer.begin("cus_1/pm_ok").checkout_id
    assert buyer.driver.checkout(checkout_id).status == "pending"

    buyer.lease_is_over()

    wait_for(lambda: buyer.driver.checkout(checkout_id).status == "completed")
    assert buyer.payments() == [(700, "succeeded")]
    assert [entry.kind for entry in buyer.shop.entries()] == ["checkout", "manual"]
    assert installation.shop.faults() == []


def test_a_page_whose_address_is_lost_with_the_worker_is_found_again_and_paid_once(
    installation: Installation,
) -> None:
    buyer = installation.buyer(installation.quiet)
    with installation.killing("after_charge"):
        checkout_id = buyer.begin(None).checkout_id
    assert buyer.driver.checkout(checkout_id).payment_url is None

    buyer.lease_is_over()
    wait_for(lambda: buyer.driver.checkout(checkout_id).payment_url)
    httpx.post(f"{buyer.driver.checkout(checkout_id).payment_url}/yes")

    wait_for(lambda: buyer.driver.checkout(checkout_id).status == "completed")
    assert buyer.payments() == [(700, "succeeded")]
    assert [entry.kind for entry in buyer.shop.entries()] == ["checkout", "manual"]
    assert installation.shop.faults() == []


@pytest.mark.slow
def test_many_charges_whose_workers_are_killed_at_any_moment_are_made_and_credited_once(
    installation: Installation,
) -> None:
    buyers = [installation.buyer(installation.quiet) for _ in range(8)]
    earlier = len(installation.quiet.payments())
    with frozen(installation.stack.pids[CHARGER]):
        for number, buyer in enumerate(buyers):
            buyer.begin(("cus_1/pm_ok", "cus_1/pm_500")[number % 2])

    for share in (1, 5):
        wait_for(partial(installation.quiet.has_made, earlier + share))
        installation.kill(CHARGER)
        for buyer in buyers:
            buyer.lease_is_over()

    wait_for(lambda: all(buyer.status() == "succeeded" for buyer in buyers))
    assert installation.quiet.payments()[earlier:] == [(700, "succeeded")] * len(buyers)
    assert {buyer.shop.wallet().balance_minor for buyer in buyers} == {0}
    assert installation.shop.faults() == []


# --- the edge -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_edge_killed_while_it_charges_a_checkout_answers_the_repetition_and_charges_once(
    installation: Installation,
) -> None:
    buyer = installation.buyer(installation.quiet)
    buyer.shop.enter(300)
    with ThreadPoolExecutor(1) as threads:
        lost = threads.submit(check_out, installation, buyer, "cus_1/pm_hang")
        wait_for(buyer.payments)
        installation.kill("api")
    assert isinstance(lost.exception(), httpx.TransportError)

    checkout = check_out(installation, buyer, "cus_1/pm_hang")
    buyer.lease_is_over()

    wait_for(lambda: buyer.driver.checkout(checkout["id"]).status == "completed")
    assert buyer.payments() == [(700, "succeeded")]
    assert [entry.kind for entry in buyer.shop.entries()] == ["checkout", "manual"]
    assert installation.shop.faults() == []


def check_out(installation: Installation, buyer: Buyer, method: str) -> Any:
    """Ask the API for a checkout of 1,000, always with the same key."""
    with buyer.shop.sessions.transaction() as conn:
        key = create_key(conn, buyer.shop.business_id, "test", ("write",)).key
    (customer_id,) = buyer.shop.customers
    answer = httpx.post(
        f"{installation.stack.api_url}/customers/{customer_id}/checkouts",
        json={
            "amount": 1000,
            "currency": "USD",
            "idempotency_key": customer_id,
            "account_id": buyer.driver.account_id,
            "payment_method": method,
        },
        headers={"Authorization": f"Bearer {key}"},
        timeout=30,
    )
    assert answer.is_success, answer.text
    return answer.json()


# --- the simulator --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_simulator_killed_after_it_charged_and_before_it_answered_has_charged_once(
    installation: Installation,
) -> None:
    buyer = installation.buyer(installation.quiet)
    buyer.runs_low("cus_1/pm_hang")
    wait_for(buyer.payments)

    installation.quiet.simulator.kill()
    installation.quiet.simulator.start()

    wait_for(lambda: buyer.status() == "succeeded")
    assert buyer.payments() == [(500, "succeeded")]
    assert buyer.bought() == [500]
    assert installation.shop.faults() == []


@pytest.mark.slow
def test_events_that_a_killed_simulator_did_not_send_are_sent_by_the_next_one_and_credited_once(
    installation: Installation,
) -> None:
    buyer = installation.buyer(installation.telling)
    with frozen(installation.stack.pids["api"]):
        # The worker that knows dies, and nobody takes the webhook.
        with installation.killing("after_charge"):
            buyer.runs_low("cus_1/pm_ok")
        installation.telling.simulator.kill()
        installation.telling.simulator.start()
        assert (installation.telling.untold(), buyer.bought()) == (1, [])

    wait_for(lambda: not installation.telling.untold() and buyer.status() == "succeeded")
    assert buyer.driver.charge(buyer.charge_id()).attempts == 1  # no second request
    assert buyer.payments() == [(500, "succeeded")]
    assert buyer.bought() == [500]
    assert installation.shop.faults() == []


def test_a_webhook_and_a_repeated_charge_after_a_kill_credit_once(
    installation: Installation,
) -> None:
    buyer = installation.buyer(installation.telling)
    with frozen(installation.stack.pids["api"]):
        with installation.killing("after_charge"):
            buyer.runs_low("cus_1/pm_ok")
        buyer.lease_is_over()
        wait_for(buyer.bought)

    wait_for(lambda: not installation.telling.untold() and not installation.unprocessed())
    assert buyer.payments() == [(500, "succeeded")]
    assert buyer.bought() == [500]
    assert installation.shop.faults() == []
