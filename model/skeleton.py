"""Names of the joints that a network predicts for each object, and their edges."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

_OPPOSITE = {"left": "right", "right": "left", "l": "r", "r": "l"}
_WORDS = (r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", r"^[LR](?=[A-Z])")  # left_knee, LeftKnee, LEFT_KNEE or L_KNEE; LKNEE


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
        return tuple(self.joints.index(_find_partner(joint, self.joints)) for joint in self.joints)

    def describe_mirroring(self) -> str:
        """Names the joints that mirrored images swap, and those that stay, in one line."""
        pairs = [(index, other) for index, other in enumerate(self.mirrored) if index <= other]
        swapped = [f"{self.joints[index]}/{self.joints[other]}" for index, other in pairs if index < other]
        kept = [self.joints[index] for index, other in pairs if index == other]
        return f"mirrored images swap the keypoints {', '.join(swapped) or '-'}, but not {', '.join(kept) or '-'}"


NO_JOINTS = Skeleton()


def _find_partner(joint: str, joints: Sequence[str]) -> str:
    """Returns the joint of the other side, or `joint` itself if there is none."""
    for word in _WORDS:
        partner = re.sub(word, _swap_side, joint)
        if partner != joint and partner in joints:
            return partner
    return joint


def _swap_side(match: re.Match[str]) -> str:
    word = match.group()
    opposite = _OPPOSITE.get(word.lower(), word)
    if word.isupper():
        return opposite.upper()
    return opposite.capitalize() if word[0].isupper() else opposite
