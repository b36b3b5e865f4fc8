"""The CPU time of each operator type of a graph, by ONNX Runtime's profiler."""

import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

_RUNS = 20


def measure_operators(path: Path, canvas: NDArray[np.uint8]) -> dict[str, float]:
    """Returns the milliseconds by operator type of one image on one thread, in descending order.

    Sums the medians of each node's runs. ONNX Runtime inserts `ReorderInput` and `ReorderOutput` to change the layout.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(_RUNS):
            session.run(None, {"images": canvas[None]})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1000)
    operators: defaultdict[str, float] = defaultdict(float)
    for (operator, _), milliseconds in nodes.items():
        operators[operator] += statistics.median(milliseconds)
    return dict(sorted(operators.items(), key=lambda each: -each[1]))


def describe_operators(operators: dict[str, float]) -> str:
    """Returns a Markdown table of the operators with their shares of the total."""
    total = sum(operators.values())
    rows = [f"| {name} | {each:.3f} | {each / total:.2%} |" for name, each in operators.items()]
    return "\n".join(["| operator, one thread | ms | share |", "|---|---:|---:|", *rows])
