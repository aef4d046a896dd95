"""What Prometheus and Grafana are given to make of the metrics, held to the metrics that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.metrics.support import Scrape

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "cryptoticker.json"
PROMETHEUS_OWN = {"up"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def names_in(queries: Sequence[str]) -> set[str]:
    """The metrics that PromQL queries name: what is no label, no function and no keyword."""
    found = set()
    for query in queries:
        bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without) *\([^)]*\)|\"[^\"]*\"", " ", query)
        found |= {name for name, call in re.findall(r"\b([a-z_][a-z0-9_]*)\b( *\()?", bare) if not call}
    return found


def labels_in(query: str) -> set[tuple[str, str]]:
    """The metric and each label that it is asked by."""
    matchers = re.findall(r"([a-z_]+)\{([^}]*)\}", query)
    return {(name, label) for name, inner in matchers for label in re.findall(r"(\w+) *[=!]", inner)}


def rule_queries() -> list[str]:
    text = re.sub(r"expr: >-\n +", "expr: ", RULES.read_text(encoding="utf-8"))
    text = re.sub(r"\n +([<>]) ", r" \1 ", text)
    return re.findall(r"^ +expr: (.*)$", text, flags=re.MULTILINE)


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_rules_and_dashboard_ask_for_metrics_and_labels_that_there_are(lived: Scrape) -> None:
    queries = rule_queries() + dashboard_queries()
    assert len(rule_queries()) == 11
    assert len(dashboard_queries()) > 20
    exist = lived.names | PROMETHEUS_OWN
    assert names_in(queries) - exist == set()
    known = {(sample.name, label) for sample in lived.samples for label in sample.labels}
    given_by_prometheus = {(name, label) for name in exist for label in ("job", "instance")}
    assert {pair for query in queries for pair in labels_in(query)} - known - given_by_prometheus == set()


def test_every_metric_of_ours_is_on_the_dashboard(lived: Scrape) -> None:
    told, shown = ({family(name) for name in names} for names in (lived.names, names_in(dashboard_queries())))
    assert {name for name in told if name.startswith("cryptoticker_")} - shown == set()


def family(name: str) -> str:
    """What a sample belongs to."""
    return re.sub(r"_(total|count|sum|bucket|created)$", "", name)


@needs_promtool
@pytest.mark.parametrize(
    "command", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"]
)
def test_promtool_takes_the_rules(command: str) -> None:
    result = subprocess.run(
        ["promtool", *command.split()], cwd=RULES.parent, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, result.stdout + result.stderr)


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_metrics(lived: Scrape) -> None:
    ours = "".join(line for line in lived.text.splitlines(keepends=True) if "_created" not in line)
    result = subprocess.run(["promtool", "check", "metrics"], input=ours, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
