from dataclasses import dataclass, field

import pytest

from worker.watchdog.consumer import STALLED_LOOKS_MAX, ConsumerWatchdog, Observation


@dataclass
class Worker:
    """A worker of two queues, whose loop turns and takes messages as told."""

    turns: int = 0
    taken: int = 0
    is_turning: bool = True
    is_taking: bool = True
    is_busy: bool = False
    is_empty: bool = False
    is_away: bool = False
    gave_up: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = ConsumerWatchdog(self.oldest, self.observe, self.gave_up.append)

    def oldest(self) -> list[bytes | None]:
        if self.is_away:
            raise ConnectionError
        self.taken += self.is_taking
        return [None, None if self.is_empty else b"%d" % self.taken]

    def observe(self) -> Observation:
        self.turns += self.is_turning
        return Observation(self.turns, self.is_busy)

    def look(self, times: int) -> None:
        for _ in range(times):
            self.watch.tick()


@pytest.fixture
def worker() -> Worker:
    worker = Worker()
    worker.look(1)
    return worker


def test_a_worker_that_takes_messages_is_kept(worker: Worker) -> None:
    worker.look(3 * STALLED_LOOKS_MAX)

    assert worker.gave_up == []


def test_a_loop_that_turns_and_takes_nothing_of_what_waits_is_given_up(worker: Worker) -> None:
    worker.is_taking = False

    worker.look(STALLED_LOOKS_MAX - 1)
    assert worker.gave_up == []
    worker.look(1)

    assert len(worker.gave_up) == 1


def test_a_loop_that_turns_while_nothing_waits_is_kept(worker: Worker) -> None:
    worker.is_taking = False
    worker.is_empty = True

    worker.look(3 * STALLED_LOOKS_MAX)

    assert worker.gave_up == []


def test_a_worker_whose_children_are_all_busy_is_kept(worker: Worker) -> None:
    worker.is_taking = False
    worker.is_busy = True

    worker.look(3 * STALLED_LOOKS_MAX)

    assert worker.gave_up == []


def test_a_loop_that_stands_is_given_up_though_nothing_waits(worker: Worker) -> None:
    worker.is_turning = False
    worker.is_empty = True

    worker.look(STALLED_LOOKS_MAX)

    assert len(worker.gave_up) == 1


def test_a_broker_that_is_away_is_waited_for_and_the_looks_count_anew(worker: Worker) -> None:
    worker.is_turning = False
    worker.look(STALLED_LOOKS_MAX - 1)
    worker.is_away = True
    with pytest.raises(ConnectionError):
        worker.look(1)
    worker.is_away = False

    worker.look(STALLED_LOOKS_MAX - 1)

    assert worker.gave_up == []
