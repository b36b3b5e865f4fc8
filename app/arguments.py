"""Command-line arguments that several commands share."""

import argparse

from app.settings import Settings, read_settings, warn_of_unknown_variables


def add_filter_arguments(parser: argparse.ArgumentParser, source: str) -> argparse._ArgumentGroup:
    """Adds the arguments for `pipeline.build_filter`; `source` tells the user where the defaults come from."""
    group = parser.add_argument_group("detections")
    group.add_argument("--threshold", type=ratio, help=f"minimum score, 0 to 1; default: {source}")
    group.add_argument("--limit", type=count, help=f"maximum number of detections per image; default: {source}")
    group.add_argument(
        "--labels",
        action="append",
        help="label to keep, repeated for each, or several separated by commas, such as dog,car; default: all",
    )
    return group


def read_settings_from(parsed: argparse.Namespace, *names: str) -> Settings:
    """Returns the settings, overridden by the `names` that were given as flags; raises `InvalidSettings`."""
    warn_of_unknown_variables("api_key")
    given = {name: getattr(parsed, name) for name in names}
    return read_settings([f"--{name}={value}" for name, value in given.items() if value is not None])


def ratio(text: str) -> float:
    """Parses a number from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return float(text)


def count(text: str) -> int:
    """Parses a whole number of 1 or more."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def counts(text: str) -> list[int]:
    """Parses whole numbers of 1 or more, separated by commas."""
    return [count(part) for part in text.split(",")]
