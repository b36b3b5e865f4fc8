from pathlib import Path
from typing import Any

import pytest

from training.config import Config
from training.generate import generate_pictures


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 24 generated pictures to train on and 6 to validate on."""
    folder = tmp_path_factory.mktemp("shapes")
    generate_pictures(folder, 24, seed=0)
    return folder


def small_config(shapes: Path, output: Path, **settings: Any) -> Config:
    """A run of seconds: two epochs of three steps on small pictures."""
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
