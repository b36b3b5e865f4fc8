"""Reads a run's settings from a TOML file and flags, and explains invalid ones."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from training.config import Config, InvalidConfig


def load_config(path: Path, overrides: Mapping[str, str]) -> Config:
    """Reads a TOML file and applies `overrides` and `overfit`; raises `InvalidConfig` naming the invalid settings."""
    try:
        settings = tomllib.loads(path.read_text("utf-8-sig"))  # editors on Windows may begin it with a BOM
    except FileNotFoundError:
        raise InvalidConfig(f"{path}: no such configuration file") from None
    except OSError as error:
        raise InvalidConfig(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # of TOML or of UTF-8
        raise InvalidConfig(f"{path}: not valid TOML in UTF-8: {error}") from error
    try:
        return make_config(settings | dict(overrides)).for_overfitting()
    except InvalidConfig as fault:
        raise InvalidConfig(f"{path}: {fault}") from fault


def make_config(settings: Mapping[str, object]) -> Config:
    """Validates settings; raises `InvalidConfig` naming the invalid ones."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise InvalidConfig("; ".join(map(_describe, error.errors()))) from error


def _describe(fault: ErrorDetails) -> str:
    name = ".".join(map(str, fault["loc"]))
    match fault["type"]:
        case "missing":
            return f"{name} is required: set it in the file, or give --{name.replace('_', '-')}"
        case "extra_forbidden":
            near = difflib.get_close_matches(name, Config.model_fields, n=1)
            return f"{name} is not a setting{''.join(f': did you mean {each}?' for each in near)}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
