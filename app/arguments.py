"""Arguments that more than one command takes."""

import argparse

from app.settings import Settings, read_settings


def add_wanted(parser: argparse.ArgumentParser, setter: str) -> argparse._ArgumentGroup:
    """Adds what `pipeline.build_filter` needs; `setter` is whose the defaults are."""
    what = parser.add_argument_group("what")
    what.add_argument("--threshold", type=ratio, help=f"least score, 0 to 1; default: {setter}")
    what.add_argument("--limit", type=count, help="most detections of a picture; default: as threshold")
    what.add_argument("--labels", help="only these, separated by commas: dog,car")
    return what


def read_given(parsed: argparse.Namespace, *names: str) -> Settings:
    """Returns the settings, with those of a command's flags that were given; raises `InvalidSettings`."""
    given = {name: getattr(parsed, name) for name in names}
    return read_settings([f"--{name}={value}" for name, value in given.items() if value is not None])


def ratio(text: str) -> float:
    """Returns a number from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return float(text)


def count(text: str) -> int:
    """Returns a whole number, 1 or more."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)
