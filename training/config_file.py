"""Reads a run's settings from a TOML file and flags, and explains invalid ones."""

import difflib
import tomllib
from collections.abc import Container, Mapping
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
    return make_config(settings | dict(overrides), f"{path}: ", overrides).for_overfitting()


def make_config(settings: Mapping[str, object], source: str = "", flags: Container[str] = ()) -> Config:
    """Validates settings; raises `InvalidConfig` naming the invalid ones, after `source` or as one of the `flags`."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise InvalidConfig("; ".join(_describe(fault, source, flags) for fault in error.errors())) from error


def _describe(fault: ErrorDetails, source: str, flags: Container[str]) -> str:
    name = ".".join(map(str, fault["loc"]))
    is_flag = name.partition(".")[0] in flags
    spell = _spell_flag if is_flag else str
    subject = f"{'' if is_flag else source}{spell(name)}"
    match fault["type"]:
        case "missing":
            return f"{subject} is required: set it in the file, or give {_spell_flag(name)}"
        case "extra_forbidden":
            near = difflib.get_close_matches(name, Config.model_fields, n=1)
            return f"{subject} is not a setting{''.join(f': did you mean {spell(each)}?' for each in near)}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{subject}: {message}" if name else f"{subject}{message}"


def _spell_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
