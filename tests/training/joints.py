"""Adds keypoints to generated data: the upper corners of every shape's box."""

import json
from pathlib import Path
from typing import Any

JOINTS = ["left_corner", "right_corner"]


def add_joints(source: Path, target: Path, **changes: Any) -> Path:
    """Writes a COCO file with keypoints to `target`; `changes` apply to every category."""
    content = json.loads(source.read_text())
    for category in content["categories"]:
        category |= {"keypoints": JOINTS, "skeleton": [[1, 2]]} | changes
    for annotation in content["annotations"]:
        x, y, width, _ = annotation["bbox"]
        annotation |= {"keypoints": [x, y, 2, x + width, y, 1], "num_keypoints": 2}
    target.write_text(json.dumps(content))
    return target
