from pathlib import Path

import pytest
import torch

from training.generate import generate_dataset


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread is faster for tiny networks, and sums in a fixed order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set of 24 training and 6 validation images."""
    folder = tmp_path_factory.mktemp("shapes")
    generate_dataset(folder, 24, seed=0)
    return folder
