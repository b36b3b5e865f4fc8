"""Adds joints to generated data sets: the upper corners of every shape's box."""

import json
from pathlib import Path
from typing import Any

JOINTS = ["left_corner", "right_corner"]


def add_joints(source: Path, target: Path, **changes: Any) -> Path:
    """Copies a COCO file to `target` with joints added and `changes` made to every category; returns `target`."""
    content = json.loads(source.read_text())
    for category in content["categories"]:
        category |= {"keypoints": JOINTS, "skeleton": [[1, 2]]} | changes
    for annotation in content["annotations"]:
        x, y, width, _ = annotation["bbox"]
        annotation |= {"keypoints": [x, y, 2, x + width, y, 1], "num_keypoints": 2}
    target.write_text(json.dumps(content))
    return target
