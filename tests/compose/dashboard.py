"""Reads the Grafana dashboard's queries, with its variables substituted."""

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
    """Yields each query as (panel title, query, legend); a panel that repeats by stage yields one for each stage."""
    for panel in read_dashboard()["panels"]:
        for target in panel.get("targets", []):
            for stage in STAGES if panel.get("repeat") == "stage" else (".+",):
                yield panel["title"], substitute_variables(target["expr"], stage), target["legendFormat"]


def substitute_variables(query: str, stage: str = ".+") -> str:
    """Substitutes variables as Grafana would, with all values selected but for `$stage`."""
    query = query.replace("$__rate_interval", "1m").replace("$stage", stage)
    return re.sub(r"\$\w+", ".+", query)
