from pathlib import Path
from typing import Any

from training.config import Config


def small_config(shapes: Path, output: Path, **settings: Any) -> Config:
    """Returns a configuration that trains in seconds: two epochs of three steps on small images."""
    defaults: dict[str, Any] = {
        "name": "test",
        "output": output,
        "data_root": shapes,
        "dataset": "generated pictures",
        "backbone": "resnet18",
        "neck_width": 8,
        "head_width": 8,
        "input_size": 64,
        "epochs": 2,
        "batch_size": 8,
        "warmup_steps": 2,
        "save_every": 2,
        "workers": 0,
    }
    return Config(**defaults | settings)
