import pytest
import torch
from torch import Tensor

from model.network.cells import DenseMap
from model.network.codec import Targets, decode, encode
from model.network.gaussian import IGNORED
from model.network.heads import HeadMaps, KeypointMaps

GRID = (40, 60)
BOXES = torch.tensor([[20.0, 20.0, 100.0, 140.0], [150.0, 30.0, 190.0, 90.0]])
JOINTS = torch.tensor(
    [
        [[30.0, 33.0, 2], [90.5, 37.3, 1], [60.0, 130.0, 2]],
        [[155.0, 41.0, 2], [0.0, 0.0, 0], [171.7, 85.0, 2]],
    ]
)


def encode_all(boxes: Tensor, joints: Tensor, is_ignored: Tensor | None = None) -> Targets:
    nothing_ignored = torch.zeros(len(boxes), dtype=torch.bool)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return encode(boxes, labels, nothing_ignored if is_ignored is None else is_ignored, joints, 1, GRID)


def to_logits(heatmap: Tensor) -> Tensor:
    return torch.logit(heatmap.clamp(1e-6, 1 - 1e-6))[None]


def as_maps(targets: Targets) -> HeadMaps:
    joints = targets.keypoints
    places, within, size, offset = (
        DenseMap(each[None]) for each in (joints.places, joints.offset, targets.size, targets.offset)
    )
    keypoints = KeypointMaps(places, to_logits(joints.heatmap), within)
    return HeadMaps(to_logits(targets.heatmap), size, offset, keypoints)


def test_decoding_the_targets_gives_the_joints_back() -> None:
    found = decode(as_maps(encode_all(BOXES, JOINTS)), limit=2)
    assert found.keypoints is not None
    by_place = found.boxes[0, :, 0].argsort()
    has_position = JOINTS[..., 2] > 0
    torch.testing.assert_close(
        found.keypoints[0, by_place][has_position][:, :2], JOINTS[has_position][:, :2], atol=1e-3, rtol=0
    )
    assert found.keypoints[0, by_place][has_position][:, 2].min() > 0.99
    assert found.keypoints[0, by_place][1, 1, 2] < 0.01  # the joint without a position


def test_every_cell_of_an_object_has_the_displacements_of_its_joints() -> None:
    targets = encode_all(BOXES[:1], JOINTS[:1])
    rows, columns = (targets.weight > 0).nonzero(as_tuple=True)
    assert len(rows) > 20
    joints = targets.keypoints.places[:, rows, columns].T.reshape(-1, 3, 2) + torch.stack([columns, rows], 1)[:, None]
    torch.testing.assert_close(joints * 4, JOINTS[:1, :, :2].expand_as(joints), atol=1e-3, rtol=0)
    assert targets.keypoints.is_known[:, rows, columns].all()
    assert not targets.keypoints.is_known[:, targets.weight == 0].any()


def test_a_joint_without_a_position_or_outside_the_image_has_no_target() -> None:
    joints = JOINTS[1:].clone()
    joints[0, 2, 0] = 4.0 * GRID[1] + 1
    targets = encode_all(BOXES[1:], joints).keypoints
    assert [int((plane == 1).sum()) for plane in targets.heatmap] == [1, 0, 0]
    assert targets.is_known.flatten(1).any(1).tolist() == [True, False, False]
    assert targets.mask.nonzero().tolist() == [[10, 38]]
    torch.testing.assert_close(targets.offset[:, 10, 38], torch.tensor([0.75, 0.25]))


def test_objects_without_joint_annotations_are_ignored() -> None:
    joints = JOINTS.clone()
    joints[0] = torch.tensor([0.0, 0.0, -1.0])
    unknown = encode_all(BOXES, joints).keypoints
    crowd = encode_all(BOXES, JOINTS, torch.tensor([True, False])).keypoints
    for targets in (unknown, crowd):
        ignored = (targets.heatmap == IGNORED).all(0).nonzero()
        assert [*ignored.amin(0).tolist(), *ignored.amax(0).tolist()] == [5, 5, 34, 24]
        assert len(ignored) == 30 * 20
        assert (targets.heatmap == 1).sum() == 2


def test_an_image_without_objects_has_targets_too() -> None:
    targets = encode_all(torch.zeros(0, 4), torch.zeros(0, 3, 3)).keypoints
    assert [tuple(each.shape) for each in targets] == [(6, *GRID), (3, *GRID), (3, *GRID), (2, *GRID), GRID]
    assert not targets.heatmap.any()


def maps_with_peaks(peaks: dict[tuple[int, int], float]) -> HeadMaps:
    """One object, 20 cells wide and high around (30.5, 20.5), with its one joint regressed to (33, 20)."""
    heatmap = torch.full((1, 1, *GRID), -9.0)
    heatmap[0, 0, 20, 30] = 4.0
    size, offset, within = (DenseMap(torch.full((1, 2, *GRID), value)) for value in (20.0, 0.5, 0.25))
    places = torch.zeros(1, 2, *GRID)
    places[0, 0] = 3.0
    joints = torch.full((1, 1, *GRID), 1e-3)
    for (column, row), score in peaks.items():
        joints[0, 0, row, column] = score
    return HeadMaps(heatmap, size, offset, KeypointMaps(DenseMap(places), torch.logit(joints), within))


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        ({(35, 21): 0.8}, (35.25, 21.25, 0.8)),
        ({(35, 21): 0.3, (36, 18): 0.9}, (35.25, 21.25, 0.3)),  # the nearest, not the best
        ({(35, 21): 0.09}, (33, 20, 1e-3)),  # too low a score
        ({(38, 22): 0.8}, (38.25, 22.25, 0.8)),  # 5.7 cells: within 0.3 of the box's 20
        ({(38, 23): 0.8}, (33, 20, 1e-3)),  # 6.2 cells: too far
        ({(33, 20): 0.05}, (33, 20, 0.05)),  # the regressed position, with the score there
    ],
)
def test_a_joint_snaps_to_the_nearest_peak_within_reach(
    peaks: dict[tuple[int, int], float], expected: tuple[float, float, float]
) -> None:
    found = decode(maps_with_peaks(peaks), limit=1)
    assert found.keypoints is not None
    wanted = torch.tensor([4 * expected[0], 4 * expected[1], expected[2]])
    torch.testing.assert_close(found.keypoints[0, 0, 0], wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("peak", "expected"),
    [
        ((35, 21), (33.0, 20.0)),  # right of the box, which ends at 34.5
        ((33, 24), (33.25, 24.25)),  # 4.3 cells: within 0.3 of the longer side of 20
    ],
)
def test_a_joint_stays_in_its_box_and_reaches_as_far_as_the_longer_side_allows(
    peak: tuple[int, int], expected: tuple[float, float]
) -> None:
    size = torch.tensor([8.0, 20.0])[None, :, None, None].expand(1, 2, *GRID)
    narrow = maps_with_peaks({peak: 0.8})._replace(size=DenseMap(size))
    found = decode(narrow, limit=1)
    assert found.keypoints is not None
    torch.testing.assert_close(found.keypoints[0, 0, 0, :2], 4 * torch.tensor(expected))


@pytest.mark.parametrize(("shift", "nearest"), [((90.0, 50.0), (59, 39)), ((-90.0, -50.0), (0, 0))])
def test_a_joint_outside_the_image_has_the_score_of_the_nearest_cell(
    shift: tuple[float, float], nearest: tuple[int, int]
) -> None:
    maps = maps_with_peaks({nearest: 0.05})
    assert maps.keypoints is not None
    places = torch.tensor(shift)[None, :, None, None].expand(1, 2, *GRID)
    found = decode(maps._replace(keypoints=maps.keypoints._replace(places=DenseMap(places))), limit=1)
    assert found.keypoints is not None
    wanted = torch.tensor([4 * (30 + shift[0]), 4 * (20 + shift[1]), 0.05])
    torch.testing.assert_close(found.keypoints[0, 0, 0], wanted, atol=1e-4, rtol=0)
