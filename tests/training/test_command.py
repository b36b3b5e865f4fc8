import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("missing", ["rich", "torch"])
def test_missing_extra_is_named_with_the_command_that_installs_it(missing: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; from training.__main__ import main; main(['models'])"
    finished = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr == f"centernet-train: {missing} is not installed: pip install 'centernet-service[train]'\n"


def test_missing_module_of_the_package_itself_raises() -> None:
    missing = "import sys; sys.modules['training.weights.average'] = None"
    script = f"{missing}; from training.__main__ import main; main(['models'])"
    finished = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 1
    assert "ModuleNotFoundError" in finished.stderr
