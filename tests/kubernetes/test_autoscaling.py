"""KEDA's Prometheus queries use exposed metrics and return the expected values."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.metrics import Metrics
from tests.kubernetes.manifests import GUIDE, compose, find, needs_kubectl, render

pytestmark = needs_kubectl


def read_triggers() -> dict[str, dict[str, Any]]:
    [scaled] = find(render(compose("cpu", "monitoring", "autoscaling")), "ScaledObject")
    assert {trigger["type"] for trigger in scaled["spec"]["triggers"]} == {"prometheus"}
    return {trigger["name"]: trigger for trigger in scaled["spec"]["triggers"]}


def list_sample_names() -> set[str]:
    metrics = Metrics()
    metrics.in_flight.labels("any")
    metrics.stage_seconds.labels("any", "queue")
    metrics.requests.labels("/detect", "POST", 200)
    metrics.rejections.labels("overloaded")
    metrics.model.labels("any")
    families = text_string_to_metric_families(metrics.expose().decode())
    return {sample.name for family in families for sample in family.samples}


def test_queries_use_exposed_metrics() -> None:
    samples = list_sample_names()
    for trigger in read_triggers().values():
        queried = re.findall(r"centernet_\w+", trigger["metadata"]["query"])
        assert queried
        assert set(queried) <= samples
    in_guide = set(re.findall(r"centernet_\w+", GUIDE))
    assert len(in_guide) >= 4
    assert in_guide <= samples | {"centernet_stage_seconds"}


SERIES = {
    # two pods with 2 and 12 images in flight, then none
    'centernet_requests_in_flight{namespace="centernet",pod="a",model="m"}': "2x20 0x20",
    'centernet_requests_in_flight{namespace="centernet",pod="b",model="m"}': "12x20 0x20",
    'centernet_requests_in_flight{namespace="other",pod="c",model="m"}': "50x40",
    # 60 images a minute, which wait 12 s in total; then none
    'centernet_stage_seconds_sum{namespace="centernet",pod="a",model="m",stage="queue"}': "0+12x20 240x20",
    'centernet_stage_seconds_count{namespace="centernet",pod="a",model="m",stage="queue"}': "0+60x20 1200x20",
    'centernet_stage_seconds_sum{namespace="centernet",pod="a",model="m",stage="inference"}': "0+99x40",
    'centernet_stage_seconds_count{namespace="centernet",pod="a",model="m",stage="inference"}': "0+60x40",
}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian's prometheus)")
def test_queries_have_the_load_as_value_and_0_without_load(tmp_path: Path) -> None:
    queries = {name: trigger["metadata"]["query"] for name, trigger in read_triggers().items()}
    expected = {"in-flight": {"15m": 14, "35m": 0}, "queue-wait": {"15m": 0.2, "35m": 0}}
    tests = {
        "rule_files": [],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": series, "values": values} for series, values in SERIES.items()],
                "promql_expr_test": [
                    {"expr": queries[name], "eval_time": time, "exp_samples": [{"labels": "{}", "value": value}]}
                    for name, values in expected.items()
                    for time, value in values.items()
                ],
            },
            {  # after five minutes two pods are replaced, which counts none twice
                "interval": "15s",
                "input_series": [
                    {"series": f'centernet_requests_in_flight{{namespace="centernet",pod="{pod}"}}', "values": values}
                    for pod, values in {
                        "a": "4x20 stale",
                        "b": "4x20 stale",
                        "c": "_x21 4x20",
                        "d": "_x21 4x20",
                    }.items()
                ],
                "promql_expr_test": [
                    {"expr": queries["in-flight"], "eval_time": "6m", "exp_samples": [{"labels": "{}", "value": 8}]}
                ],
            },
            {  # 0 before anything is scraped
                "promql_expr_test": [
                    {"expr": queries["queue-wait"], "eval_time": "1m", "exp_samples": [{"labels": "{}", "value": 0}]}
                ],
            },
        ],
    }
    (tmp_path / "tests.json").write_text(json.dumps(tests))  # JSON is YAML
    done = subprocess.run(["promtool", "test", "rules", "tests.json"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_guide_states_the_thresholds() -> None:
    for name, trigger in read_triggers().items():
        assert re.search(
            rf"^\| `{name}` .*\| {re.escape(trigger['metadata']['threshold'])} [^|]*\|$", GUIDE, re.MULTILINE
        )
