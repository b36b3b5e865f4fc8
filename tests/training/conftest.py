from pathlib import Path

import pytest
import torch

from training.generate import generate_dataset


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny networks run faster alone, and their sums in the same order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 24 generated pictures to train on and 6 to validate on."""
    folder = tmp_path_factory.mktemp("shapes")
    generate_dataset(folder, 24, seed=0)
    return folder
