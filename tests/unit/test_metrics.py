"""The rules for alarms use metrics that exist. `test_papers` checks the page of metrics."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

import worker.metrics
from support.reference import name_of

DOCS = Path(__file__).parents[2] / "docs"
RULES = DOCS / "alerts.yml"


def samples() -> dict[str, set[str]]:
    """The names of the series of this installation, with their labels."""
    found: dict[str, set[str]] = {}
    for metric in vars(worker.metrics).values():
        if isinstance(metric, MetricWrapperBase):
            labels, name = set(metric._labelnames), name_of(metric)
            found[name] = labels
            if metric._type == "histogram":
                found |= {f"{name}_sum": labels, f"{name}_count": labels}
                found[f"{name}_bucket"] = labels | {"le"}
    return found


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    assert len({alert["alert"] for alert in alerts()}) == len(alerts()) > 0
    for alert in alerts():
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert set(alert["annotations"]) == {"summary", "description"}
        assert alert["for"]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_uses_existing_metrics_and_labels(alert: dict[str, Any]) -> None:
    labels_of = samples()
    series = re.findall(r"(gullak_\w+)(?:\{([^}]*)\})?", alert["expr"])

    assert series
    for name, selectors in series:
        assert name in labels_of
        assert set(re.findall(r"(\w+)\s*[=!]~?", selectors)) <= labels_of[name]
    by = re.findall(r"by \(([^)]*)\)", alert["expr"])
    assert {label.strip() for labels in by for label in labels.split(",")} <= set().union(
        *(labels_of[name] for name, _ in series)
    )


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_prometheus_accepts_the_rules() -> None:
    ran = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
