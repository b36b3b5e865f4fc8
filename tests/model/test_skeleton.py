import pytest

from model.skeleton import NO_JOINTS, Skeleton


def test_mirroring_swaps_left_and_right_in_any_spelling() -> None:
    joints = ("nose", "left_eye", "right_eye", "LeftHip", "RightHip", "L_Knee", "R_Knee", "leftover")
    assert Skeleton(joints).mirrored == (0, 2, 1, 4, 3, 6, 5, 7)
    assert Skeleton(("left_ear", "tail")).mirrored == (0, 1)  # no right ear to swap with
    assert NO_JOINTS.mirrored == ()


def test_skeleton_is_read_from_json() -> None:
    assert Skeleton.from_json({"joints": ["a", "b"], "edges": [[0, 1]]}) == Skeleton(("a", "b"), ((0, 1),))
    with pytest.raises(TypeError):
        Skeleton.from_json({"bones": []})
