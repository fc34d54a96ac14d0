"""`celeryconfig.py` agrees with itself and with the registered tasks."""

from pathlib import Path
from typing import Any

import pytest

import celeryconfig
from worker.app import app
from worker.local.up import WEBHOOK_QUEUES, WORKER_QUEUES

ROOT = Path(__file__).parents[2]
QUEUES = {queue.name for queue in celeryconfig.task_queues}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    """The registered tasks of the product."""
    app.loader.import_default_modules()
    return {name: task for name, task in app.tasks.items() if not name.startswith("celery.")}


def test_every_scheduled_task_exists(tasks: dict[str, Any]) -> None:
    scheduled = {entry["task"] for entry in celeryconfig.beat_schedule.values()}

    assert scheduled <= set(tasks)


def test_every_sweep_is_scheduled(tasks: dict[str, Any]) -> None:
    scheduled = {entry["task"] for entry in celeryconfig.beat_schedule.values()}

    assert {name for name in tasks if name.endswith(".sweep")} <= scheduled


def test_every_task_goes_to_the_queue_of_its_stage(tasks: dict[str, Any]) -> None:
    routed = {name: app.amqp.router.route({}, name)["queue"].name for name in tasks}

    # Tasks that wait for a payment provider must delay neither debits nor alerts nor sweeps.
    apart = {"purchase.charge": "charge", "debit.sweep": "sweep"}
    assert routed == {name: name.partition(".")[0] for name in tasks} | apart


def test_workers_consume_exactly_the_declared_queues() -> None:
    consumed = {*WORKER_QUEUES.split(","), *WEBHOOK_QUEUES.split(",")}

    assert consumed == QUEUES
    assert celeryconfig.task_default_queue in QUEUES
    assert not celeryconfig.task_create_missing_queues


def test_every_module_of_tasks_is_imported() -> None:
    modules = {f"tasks.{path.stem}" for path in (ROOT / "tasks").glob("[!_]*.py")}

    assert set(celeryconfig.imports) == modules


def test_a_scheduled_message_expires_within_its_period() -> None:
    schedule: dict[str, Any] = celeryconfig.beat_schedule
    for name, entry in schedule.items():
        assert 0 < entry["options"]["expires"] <= max(entry["schedule"], 2), name


def test_a_task_ends_before_its_message_is_delivered_again() -> None:
    visible_again_s = celeryconfig.broker_transport_options["visibility_timeout"]

    assert celeryconfig.task_soft_time_limit < celeryconfig.task_time_limit < visible_again_s


def test_a_black_holed_broker_cannot_hang_a_publisher() -> None:
    options = celeryconfig.broker_transport_options

    assert 0 < options["socket_timeout"] <= 10
    assert 0 < options["socket_connect_timeout"] <= 10
    assert 0 < celeryconfig.broker_pool_acquire_timeout <= 10


def test_a_message_survives_its_worker_and_no_worker_prefetches() -> None:
    assert celeryconfig.task_acks_late
    assert celeryconfig.task_reject_on_worker_lost
    assert celeryconfig.worker_prefetch_multiplier == 1


def test_messages_are_plain_json_and_leave_no_results() -> None:
    assert celeryconfig.accept_content == [celeryconfig.task_serializer] == ["json"]
    assert celeryconfig.task_ignore_result
    assert celeryconfig.result_backend is None


def test_the_app_uses_the_settings_of_celeryconfig() -> None:
    assert app.conf.task_time_limit == celeryconfig.task_time_limit
    assert app.conf.beat_schedule == celeryconfig.beat_schedule
