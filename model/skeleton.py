"""Names of the joints that a network predicts for each object, and their edges. Free of torch."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

_OPPOSITE = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """`joints[i]` is the name of joint i; `edges` are pairs of joint indices to connect by lines.

    A model that predicts only boxes has no joints.
    """

    joints: tuple[str, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Skeleton":
        """Reads the output of `dataclasses.asdict` after a JSON round trip; raises `TypeError` or `ValueError`."""
        skeleton = cls(**content)
        edges = tuple((int(one), int(other)) for one, other in skeleton.edges)
        return cls(tuple(map(str, skeleton.joints)), edges)

    @functools.cached_property  # used for every photo that is read
    def mirrored(self) -> tuple[int, ...]:
        """For each joint, its counterpart in a mirrored image: `left_eye` and `right_eye` swap."""
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
