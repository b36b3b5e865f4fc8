"""Arguments that more than one command takes."""

import argparse


def add_wanted(parser: argparse.ArgumentParser, setter: str) -> argparse._ArgumentGroup:
    """Adds what `pipeline.choose` needs; `setter` is whose the defaults are."""
    what = parser.add_argument_group("what")
    what.add_argument("--threshold", type=ratio, help=f"least score, 0 to 1; default: {setter}")
    what.add_argument("--limit", type=count, help="most detections of a picture; default: as threshold")
    what.add_argument("--labels", help="only these, separated by commas: dog,car")
    return what


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
