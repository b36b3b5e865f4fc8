"""Every query of dashboard, recording rules and alerts selects series and labels that the server exposes."""

import json
import re
from collections.abc import AsyncIterator, Iterator

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from tests.app.client import Serve
from tests.compose.dashboard import STAGES, list_queries, read_dashboard, substitute_variables
from tests.compose.files import DOCKER

SCRAPED = {"job": "centernet", "instance": "server:8001"}
Series = dict[str, list[dict[str, str]]]


def list_rules() -> Iterator[dict[str, str]]:
    for name in ("recording.yml", "alerts.yml"):
        for group in yaml.safe_load((DOCKER / "prometheus" / name).read_text())["groups"]:
            yield from group["rules"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def exposed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Series]:
    """The labels of all series by name, as Prometheus has them after one detection and one rejected request."""
    monkeypatch.setattr("app.telemetry.metrics.read_memory_limit", lambda: 2**31)
    async with serve() as client:
        assert (await client.detect()).status_code == 200
        assert (await client.detect(b"no picture")).status_code == 415
        text = (await client.get("/metrics")).text
    series: Series = {"up": [SCRAPED], "ALERTS": [SCRAPED]}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels | SCRAPED)
    for rule in list_rules():
        if "record" in rule:
            by = re.search(r"by \(([^)]*)\)", rule["expr"])
            assert by
            names = [name.strip() for name in by[1].split(",") if name.strip() != "le"]
            values = [{"route": "/detect", "model": "colours", "stage": stage} | SCRAPED for stage in STAGES]
            series[rule["record"]] = [{name: each[name] for name in names} for each in values]
    yield series


def check_query(query: str, exposed: Series) -> set[str]:
    """Asserts that each selector matches a series and each grouping names its labels; returns the result's labels."""
    found: set[str] = set()
    groupings: list[set[str]] = []

    def visit(part: promql_parser.Expr) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            assert part.name in exposed, f"there is no series {part.name}: {query}"
            matching = [each for each in exposed[part.name] if matches(part, each)]
            assert matching, f"{part.prettify()} finds none"
            found.update(*matching)
        elif isinstance(part, promql_parser.AggregateExpr) and part.modifier:
            groupings.append(set(part.modifier.labels))

    promql_parser.walk(promql_parser.parse(query), visit)
    for grouping in groupings:
        assert grouping <= found, f"no labels {grouping - found}: {query}"
    return set.intersection(found, *groupings)


def matches(selector: promql_parser.VectorSelector, labels: dict[str, str]) -> bool:
    for matcher in selector.matchers.matchers:
        value, op = labels.get(matcher.name, ""), str(matcher.op).removeprefix("MatchOp.")
        holds = (
            matcher.value == value if op in ("Equal", "NotEqual") else re.fullmatch(matcher.value, value) is not None
        )
        if holds == op.startswith("Not"):
            return False
    return True


@pytest.mark.anyio
async def test_panels_query_exposed_series(exposed: Series) -> None:
    queries = list(list_queries())
    assert len(queries) > 25
    for title, query, legend in queries:
        left = check_query(query, exposed)
        for label in re.findall(r"\{\{(\w+)\}\}", legend):
            assert label in left, f"{title}: {label} is not among {left}"


@pytest.mark.anyio
async def test_rules_query_exposed_series(exposed: Series) -> None:
    # alerts on errors select 5xx, of which there is no series before the first error
    exposed["centernet_requests_total"].append({"route": "/detect", "method": "POST", "status": "500"} | SCRAPED)
    for rule in list_rules():
        left = check_query(rule["expr"], exposed)
        for label in re.findall(r"\$labels\.(\w+)", str(rule.get("annotations"))):
            assert label in left, f"{rule}: {label} is not among {left}"


@pytest.mark.anyio
async def test_wrong_queries_are_detected(exposed: Series) -> None:
    for query, fault in [
        ("centernet_stages_seconds_count", "there is no series"),
        ('centernet_requests_total{status="418"}', "finds none"),
        ('rate(centernet_stage_seconds_bucket{stage!~".+"}[5m])', "finds none"),
        ("sum by (lable) (centernet_detections_total)", "no labels"),
    ]:
        with pytest.raises(AssertionError, match=fault):
            check_query(query, exposed)


@pytest.mark.anyio
async def test_dashboard_variables_are_exposed_labels(exposed: Series) -> None:
    for variable in read_dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
            assert label == variable["name"]
            assert label in check_query(substitute_variables(selector), exposed)


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    register_default_plugins()
    dashboard = read_dashboard()
    parsed = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    assert find_lost_fields(dashboard, parsed) == []


def find_lost_fields(given: object, parsed: object, at: str = "") -> list[str]:
    """Returns the paths of fields that are missing or different in `parsed`."""
    if isinstance(given, dict) and isinstance(parsed, dict):
        return [
            fault
            for key, value in given.items()
            for fault in ([f"{at}.{key}"] if key not in parsed else find_lost_fields(value, parsed[key], f"{at}.{key}"))
        ]
    if isinstance(given, list) and isinstance(parsed, list) and len(given) == len(parsed):
        pairs = enumerate(zip(given, parsed, strict=True))
        return [fault for index, pair in pairs for fault in find_lost_fields(*pair, f"{at}[{index}]")]
    return [] if given == parsed else [at]


def test_panels_do_not_overlap() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in read_dashboard()["panels"]]
    for index, (title, one) in enumerate(places):
        assert one["x"] + one["w"] <= 24
        for other_title, other in places[:index]:
            apart = (
                one["x"] + one["w"] <= other["x"]
                or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"]
                or other["y"] + other["h"] <= one["y"]
            )
            assert apart, f"{title} overlaps {other_title}"


def test_data_source_interval_is_the_scrape_interval() -> None:
    [source] = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    scrape = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
