"""Files of text that a command leaves behind."""

import json
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8, whole or not at all, and makes the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, content: object) -> None:
    """Writes what `json` can write, as `write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")
