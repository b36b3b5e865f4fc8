import re
from pathlib import Path

from app.metrics import Metrics
from app.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text() + (ROOT / "docs" / "operations.md").read_text()


def test_every_setting_is_explained() -> None:
    assert [name for name in Settings.model_fields if f"`{name}`" not in TEXT] == []


def test_every_metric_is_explained() -> None:
    names = re.findall(rb"^# HELP (centernet_\w+)", Metrics().expose(), re.MULTILINE)
    assert [name.decode() for name in names if f"`{name.decode()}`" not in TEXT] == []
