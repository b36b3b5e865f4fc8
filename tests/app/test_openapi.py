"""Generated requests get only the responses that the OpenAPI document declares, and no 5xx except 504."""

import shutil
import subprocess
import sys
from pathlib import Path

from app.settings import Settings
from model.detector import Detector
from tests.app.listener import listen_in_thread

# a schema cannot say whether bytes are an image, so valid requests may get 4xx; a short timeout gives 504
CONFIG = """
[checks]
positive_data_acceptance.enabled = false
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""


def test_responses_match_the_openapi_document(model_path: Path, tmp_path: Path) -> None:
    command = shutil.which("schemathesis", path=Path(sys.executable).parent)
    assert command, "schemathesis is installed with the extra dev"
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    chosen = Settings(model=(model_path,), provider="cpu", threads=1, decode_threads=2)
    with listen_in_thread(chosen, Detector(model_path, "cpu", 1)) as url:
        run = subprocess.run(
            [command, "run", f"{url}/openapi.json", "--max-examples=20", "--seed=1", "--no-color", "--workers=1"],
            cwd=tmp_path,  # it writes its findings to the working directory
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert run.returncode == 0, run.stdout
