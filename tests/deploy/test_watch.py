"""Prometheus's configuration and Grafana's dashboards: valid, and only of metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import DEPLOY, PROJECT, passes, program

DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))


def expressions(dashboard: Path) -> list[str]:
    panels: list[dict[str, Any]] = json.loads(dashboard.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_promtool_accepts_the_configuration() -> None:
    passes(program("promtool"), "check", "config", DEPLOY / "prometheus/prometheus.yml")


def test_every_role_is_scraped() -> None:
    jobs = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    names = [name for job in jobs for source in job["dns_sd_configs"] for name in source["names"]]
    assert names == ["ingest", "processors", "gateway"]


def test_the_alerts_are_loaded_and_use_only_metrics_that_there_are() -> None:
    configuration = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert configuration["rule_files"] == ["alerts.yml"]
    alerts = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    assert {"RecordsDeletedUnread", "ClockOff"} <= {rule["alert"] for rule in rules}
    source = (PROJECT / "service/src/metrics.rs").read_text()
    for rule in rules:
        for name in re.findall(r"eshaar_\w+", rule["expr"]):
            assert f'"{name}"' in source, name
    passes(program("promtool"), "check", "rules", DEPLOY / "prometheus/alerts.yml")


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.name)
def test_promtool_accepts_the_expressions_of_a_dashboard(dashboard: Path, tmp_path: Path) -> None:
    # As recording rules, which is how promtool reads expressions. Grafana puts a duration where it writes $__rate_interval.
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "1m")}
        for number, text in enumerate(expressions(dashboard))
    ]
    assert rules
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    passes(program("promtool"), "check", "rules", file)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.name)
def test_a_dashboard_shows_only_metrics_that_there_are(dashboard: Path) -> None:
    source = (PROJECT / "service/src/metrics.rs").read_text()
    known = {name: kind for kind, name in re.findall(r'= (Counter|Gauge|Histogram), "(\w+)"', source)}
    for text in expressions(dashboard):
        for name in re.findall(r"eshaar_\w+", text):
            base = name.removesuffix("_bucket")
            assert known.get(base) == "Histogram" if name != base else base in known, name


def test_the_dashboards_are_where_grafana_looks_and_use_its_data_source() -> None:
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/eshaar.yml").read_text())["providers"][0]
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    for dashboard in DASHBOARDS:
        panels = [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]
        assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
        assert len({panel["id"] for panel in panels}) == len(panels)
