"""The dashboard's queries, as Prometheus is asked them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "docker" / "grafana" / "dashboards" / "centernet.json"
STAGES = ("read", "decode", "queue", "inference", "encode")


def read_dashboard() -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(FILE.read_text())
    return dashboard


def list_queries() -> Iterator[tuple[str, str, str]]:
    """Gives each query with its panel's title and its legend; that of the panel for each stage, for each stage."""
    for panel in read_dashboard()["panels"]:
        for target in panel.get("targets", []):
            for stage in STAGES if panel.get("repeat") == "stage" else (".+",):
                yield panel["title"], fill_in(target["expr"], stage), target["legendFormat"]


def fill_in(query: str, stage: str = ".+") -> str:
    """Puts in what Grafana would: this stage, and all values of the other variables."""
    query = query.replace("$__rate_interval", "1m").replace("$stage", stage)
    return re.sub(r"\$\w+", ".+", query)
