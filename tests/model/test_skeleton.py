import pytest

from model.skeleton import NO_JOINTS, Skeleton


def test_mirroring_swaps_left_and_right_in_all_spellings() -> None:
    joints = ("nose", "left_eye", "right_eye", "LeftHip", "RightHip", "L_Knee", "R_Knee", "leftover")
    assert Skeleton(joints).mirrored == (0, 2, 1, 4, 3, 6, 5, 7)
    for left, right in (("LEFT_EAR", "RIGHT_EAR"), ("LEFT_LEG", "RIGHT_LEG"), ("LELBOW", "RELBOW"), ("earL", "earR")):
        assert Skeleton((left, right)).mirrored == (1, 0)
    assert Skeleton(("left_ear", "tail")).mirrored == (0, 1)  # there is no right one to swap with
    assert NO_JOINTS.mirrored == ()


def test_swapped_keypoints_and_others_are_described() -> None:
    joints = ("nose", "left_eye", "right_eye", "lhip", "rhip")
    described = "mirrored images swap the keypoints left_eye/right_eye, but not nose, lhip, rhip"
    assert Skeleton(joints).describe_mirroring() == described
    assert Skeleton(joints[:1]).describe_mirroring() == "mirrored images swap the keypoints -, but not nose"


def test_skeleton_comes_back_from_json() -> None:
    assert Skeleton.from_json({"joints": ["a", "b"], "edges": [[0, 1]]}) == Skeleton(("a", "b"), ((0, 1),))
    with pytest.raises(TypeError):
        Skeleton.from_json({"bones": []})
