"""Atomic writing of text and JSON files."""

import json
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, creating the folder if needed; atomically, except into a device or pipe."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, content: object) -> None:
    """Writes `content` as JSON, as `write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")
