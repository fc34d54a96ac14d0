"""docker-compose.yml without Docker: its form, and every command and health check run natively."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml
from compose_pydantic import ComposeSpecification

import celeryconfig
from worker.local.embedded import Credentials, open_credentials, postgres_role, redis_role
from worker.local.port import free_port
from worker.local.supervisor import Role

ROOT = Path(__file__).parents[2]
SERVERS = {"postgres", "redis", "broker"}
LONG_RUNNING = SERVERS | {"worker", "worker-webhook", "worker-charge", "beat", "api"}
HEALTHY_WITHIN_S = 120
# ${NAME}, ${NAME:-default}, ${NAME:?message}; `$$` is a dollar sign.
VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::([-?])([^}]*))?\}")

Service = dict[str, Any]


def load(variables: Mapping[str, str]) -> dict[str, Any]:
    """Read the file as Compose does: substitute, parse, drop extensions."""

    def value_of(found: re.Match[str]) -> str:
        name, operator, text = found.groups()
        if name is None:
            return "$"
        if variables.get(name):
            return variables[name]
        if operator == "?":
            raise LookupError(text)
        return text or ""

    text = re.sub(r"(?m)^\s*#.*$", "", (ROOT / "docker-compose.yml").read_text())
    document = yaml.safe_load(VARIABLE.sub(value_of, text))
    return {name: part for name, part in document.items() if not name.startswith("x-")}


SECRETS = {"POSTGRES_PASSWORD": "pg-secret", "REDIS_PASSWORD": "redis-secret"}


def test_the_file_follows_the_compose_specification() -> None:
    jsonschema.validate(load(SECRETS), ComposeSpecification.model_json_schema())


def test_a_misspelt_key_is_found() -> None:
    document = load(SECRETS)
    document["services"]["beat"]["retart"] = "always"

    with pytest.raises(jsonschema.ValidationError, match="retart"):
        jsonschema.validate(document, ComposeSpecification.model_json_schema())


@pytest.mark.parametrize("missing", SECRETS)
def test_a_missing_password_is_named(missing: str) -> None:
    with pytest.raises(LookupError, match=f"set {missing}"):
        load({name: value for name, value in SECRETS.items() if name != missing})


def test_long_running_services_restart_and_are_watched() -> None:
    services = load(SECRETS)["services"]

    watched = {name for name, service in services.items() if "test" in service["healthcheck"]}
    always = {name for name, service in services.items() if service["restart"] == "always"}
    assert watched == always == LONG_RUNNING
    assert services["migrate"]["restart"] == "on-failure"


def test_every_queue_has_a_worker() -> None:
    services = load(SECRETS)["services"]
    options = [part for service in services.values() for part in service["command"]]
    consumed = [part.split("=")[1].split(",") for part in options if part.startswith("--queues=")]

    assert sorted(chain.from_iterable(consumed)) == sorted(
        queue.name for queue in celeryconfig.task_queues
    )


def test_the_image_is_pinned_and_does_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()

    assert "USER gullak" in lines
    assert any("--require-hashes -r requirements/runtime.txt" in line for line in lines)
    assert not [line for line in lines if "index" in line or "dev.txt" in line]


def test_the_build_context_holds_everything_that_the_image_copies() -> None:
    copies = [line.split()[1:-1] for line in (ROOT / "Dockerfile").read_text().splitlines()
              if line.startswith("COPY ")]  # fmt: skip
    let_through = (ROOT / ".dockerignore").read_text().split()

    assert [source for copy in copies for source in copy if f"!{source}" not in let_through] == []


@dataclass
class Natively:
    """The services as local processes, started in the order of `depends_on`."""

    folder: Path
    credentials: Credentials
    ports: dict[str, int]
    roles: dict[str, Role]
    services: dict[str, Service]
    base: Mapping[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of the container, with local addresses and folders."""
        given = {key: str(value) for key, value in self.services[name]["environment"].items()}
        run = self.folder / name
        run.mkdir(exist_ok=True)
        local = {
            "@postgres:5432": f"@127.0.0.1:{self.credentials.postgres_port}",
            "@redis:6379": f"@127.0.0.1:{self.ports['redis']}",
            "@broker:6379": f"@127.0.0.1:{self.ports['broker']}",
            "/run/gullak": str(run),
        }
        for there, ours in local.items():
            given = {key: value.replace(there, ours) for key, value in given.items()}
        folders = [
            Path(sys.executable).parent,
            *(Path(r.argv[0]).parent for r in self.roles.values()),
        ]
        path = os.pathsep.join([*map(str, folders), self.base["PATH"]])
        servers = {"PGPORT": str(self.credentials.postgres_port), "PATH": path}
        if name != "worker":
            given["GULLAK_METRICS_PORT"] = "0"  # in containers the same port is free in each
        return {**self.base, **given, **servers}

    def start(self, name: str) -> None:
        argv = [str(part) for part in self.services[name]["command"]]
        log = (self.folder / f"{name}.log").open("ab")
        more: dict[str, Any] = {}
        if name == "postgres":
            argv[0] = self.roles[name].argv[0]
            user = self.roles[name].user
            data = str(self.folder / "postgres")
            more = {"user": user, "group": user, "env": {"PGDATA": data, **self.environment(name)}}
        if name in self.ports:
            home = self.folder / name
            home.mkdir(exist_ok=True)
            port = str(self.ports[name])
            argv += ["--port", port, "--bind", "127.0.0.1", "--dir", str(home)]
        more = {"env": self.environment(name), **more}
        with log:
            self.running[name] = subprocess.Popen(argv, stdout=log, stderr=log, **more)

    def is_healthy(self, name: str) -> bool:
        kind, *test = self.services[name]["healthcheck"]["test"]
        argv = test if kind == "CMD" else ["/bin/sh", "-c", *test]
        argv = [a.replace("/run/gullak", str(self.folder / name)) for a in argv]
        argv = [a.replace("redis-cli", f"redis-cli -p {self.ports.get(name)}") for a in argv]
        timeout_s = int(self.services[name]["healthcheck"]["timeout"].removesuffix("s"))
        environment = self.environment(name)
        done = subprocess.run(
            argv, env=environment, timeout=timeout_s, check=False, capture_output=True
        )
        return done.returncode == 0

    def stop(self, name: str) -> int:
        number = signal.Signals[self.services[name].get("stop_signal", "SIGTERM")]
        self.running[name].send_signal(number)
        grace_s = int(self.services[name]["stop_grace_period"].removesuffix("s"))
        return self.running[name].wait(grace_s)


def generations(services: Mapping[str, Service]) -> Iterator[tuple[str, ...]]:
    """Yield the services that can start at once, then those that wait for them, and so on."""
    waits_for = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    sorter = TopologicalSorter(waits_for)
    sorter.prepare()
    while sorter:
        yield (names := sorter.get_ready())
        sorter.done(*names)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@contextmanager
def natively(folder: Path, base: Mapping[str, str]) -> Iterator[Natively]:
    credentials = open_credentials(folder)
    passwords = {
        "POSTGRES_PASSWORD": credentials.postgres_password,
        "REDIS_PASSWORD": credentials.redis_password,
        "GULLAK_METRICS_PORT": str(free_port()),
        "API_PORT": str(free_port()),
    }
    ports = {"redis": credentials.redis_port, "broker": free_port()}
    roles = {
        "postgres": postgres_role(folder, credentials, fast_unsafe=True),
        "redis": redis_role(folder, credentials, "everysec"),
    }
    # The image listens on a socket in its own folder; the default folder of the wheel is shared.
    with (folder / "postgres" / "postgresql.conf").open("a") as conf:
        conf.write("unix_socket_directories = ''\n")
    machine = Natively(folder, credentials, ports, roles, load(passwords)["services"], base)
    try:
        yield machine
    finally:
        for process in reversed(list(machine.running.values())):
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.mark.slow
def test_every_service_runs_becomes_healthy_and_stops_cleanly(
    data_dir: Path, variables: Mapping[str, str]
) -> None:
    with natively(data_dir, variables) as machine:
        for names in generations(machine.services):
            for name in names:
                machine.start(name)
            for name in LONG_RUNNING & {*names}:
                wait_for(partial(machine.is_healthy, name), f"{name} is not healthy")
            for name in {*names} - LONG_RUNNING:
                assert machine.running[name].wait(HEALTHY_WITHIN_S) == 0

        port = machine.environment("worker")["GULLAK_METRICS_PORT"]
        address = f"http://127.0.0.1:{port}/metrics"
        wait_for(
            lambda: "gullak_task_runs_total" in httpx.get(address).text, "no task was ever counted"
        )

        started = [*machine.running]
        exits = {name: machine.stop(name) for name in reversed(started) if name in LONG_RUNNING}

        assert exits == dict.fromkeys(LONG_RUNNING, 0)
        assert not [name for name in SERVERS if machine.is_healthy(name)]
