from dataclasses import dataclass, field

import pytest
from fakeredis import FakeRedis, FakeServer
from redis.exceptions import ConnectionError as RedisConnectionError

from worker.consuming import DEAF_LOOKS_MAX, DeafWatch, Heard


@dataclass
class Worker:
    """A worker of the queue `debit`, whose loop turns and takes messages as told."""

    server: FakeServer = field(default_factory=FakeServer)
    turns: int = 0
    taken: int = 0
    is_turning: bool = True
    is_taking: bool = True
    is_busy: bool = False
    gave_up: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broker = FakeRedis(server=self.server)
        self.watch = DeafWatch(
            self.broker, queues=lambda: ("debit",), hear=self.hear, give_up=self.gave_up.append
        )

    def hear(self) -> Heard:
        self.turns += self.is_turning
        self.taken += self.is_taking
        return Heard(self.turns, self.taken, self.is_busy)

    def look(self, times: int) -> None:
        for _ in range(times):
            self.watch.beat()


@pytest.fixture
def worker() -> Worker:
    worker = Worker()
    worker.broker.lpush("debit", "a message")
    worker.look(1)
    return worker


def test_a_worker_that_takes_messages_is_kept(worker: Worker) -> None:
    worker.look(3 * DEAF_LOOKS_MAX)

    assert worker.gave_up == []


def test_a_loop_that_turns_and_takes_nothing_of_what_waits_is_given_up(worker: Worker) -> None:
    worker.is_taking = False

    worker.look(DEAF_LOOKS_MAX - 1)
    assert worker.gave_up == []
    worker.look(1)

    assert len(worker.gave_up) == 1


def test_a_loop_that_turns_while_nothing_waits_is_kept(worker: Worker) -> None:
    worker.is_taking = False
    worker.broker.delete("debit")

    worker.look(3 * DEAF_LOOKS_MAX)

    assert worker.gave_up == []


def test_a_worker_whose_children_are_all_busy_is_kept(worker: Worker) -> None:
    worker.is_taking = False
    worker.is_busy = True

    worker.look(3 * DEAF_LOOKS_MAX)

    assert worker.gave_up == []


def test_a_loop_that_stands_is_given_up_though_nothing_waits(worker: Worker) -> None:
    worker.is_turning = False
    worker.broker.delete("debit")

    worker.look(DEAF_LOOKS_MAX)

    assert len(worker.gave_up) == 1


def test_what_another_worker_should_take_is_not_waited_for(worker: Worker) -> None:
    worker.is_taking = False
    worker.broker.delete("debit")
    worker.broker.lpush("webhook", "a message")

    worker.look(3 * DEAF_LOOKS_MAX)

    assert worker.gave_up == []


def test_a_broker_that_is_away_is_waited_for_and_the_looks_count_anew(worker: Worker) -> None:
    worker.is_turning = False
    worker.look(DEAF_LOOKS_MAX - 1)
    worker.server.connected = False
    with pytest.raises(RedisConnectionError):
        worker.look(1)
    worker.server.connected = True

    worker.look(DEAF_LOOKS_MAX - 1)

    assert worker.gave_up == []
