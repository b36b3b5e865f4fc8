"""The joints that a network finds of each object: any number, of any names. Free of torch."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

_OPPOSITE = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """`joints[i]` names the joint that a model calls i; `edges` are the pairs of joints that a line connects.

    Without joints for a model that finds boxes alone.
    """

    joints: tuple[str, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Skeleton":
        """Reads what `dataclasses.asdict` gave, as JSON gives it back; raises `TypeError` or `ValueError`."""
        skeleton = cls(**content)
        edges = tuple((int(one), int(other)) for one, other in skeleton.edges)
        return cls(tuple(map(str, skeleton.joints)), edges)

    @functools.cached_property  # asked for with every photo that is read
    def mirrored(self) -> tuple[int, ...]:
        """For each joint the one that takes its place in a mirrored picture: `left_eye` and `right_eye` swap."""
        partners = [_swap_sides(joint) for joint in self.joints]
        return tuple(
            self.joints.index(partner) if partner in self.joints else index for index, partner in enumerate(partners)
        )


NO_JOINTS = Skeleton()


def _swap_sides(joint: str) -> str:
    def swap(match: re.Match[str]) -> str:
        word = match.group()
        opposite = _OPPOSITE.get(word.lower(), word)
        return opposite.capitalize() if word[0].isupper() else opposite

    return re.sub(r"[A-Z]?[a-z]+|[A-Z]", swap, joint)
