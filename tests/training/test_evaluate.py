import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from model.detector import Detections
from model.network.cells import DenseMap
from model.network.codec import decode, encode
from model.network.heads import HeadMaps, KeypointMaps
from model.skeleton import Skeleton
from tests.training.configs import small_config
from tests.training.joints import add_joints
from training.__main__ import main
from training.datasets.dataset import Dataset, InvalidDataset
from training.datasets.load import load_dataset
from training.evaluation.evaluate import detect_with_checkpoint, detect_with_network, split_batch
from training.evaluation.test_time_augmentation import TestTimeAugmentation, forward_with_flip, soft_nms
from training.weights.checkpoint import Checkpoint, build_network


@pytest.fixture
def dataset(shapes: Path) -> Dataset:
    return load_dataset(shapes / "val.json", shapes / "images")


class Oracle(nn.Module):
    """Always detects the same box, with half its height in a mirrored image."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []
        self.first: Tensor | None = None

    def forward(self, images: Tensor) -> HeadMaps:
        self.seen.append(tuple(images.shape))
        side = images.shape[1]
        is_mirrored = self.first is not None and torch.equal(images, self.first.flip(2))
        self.first = images
        left, half_height = (0.49, 0.125) if is_mirrored else (0.26, 0.25)
        box = torch.tensor([[left, 0.5 - half_height, left + 0.25, 0.5 + half_height]]) * side
        targets = encode(box, torch.tensor([1]), torch.tensor([False]), torch.zeros(1, 0, 3), 3, (side // 4, side // 4))
        logits = torch.logit(targets.heatmap.clamp(1e-4, 1 - 1e-4))
        heatmap, *boxes = (each.expand(len(images), *each.shape) for each in (logits, targets.size, targets.offset))
        return HeadMaps(heatmap, *map(DenseMap, boxes))


def test_suppressed_boxes_are_no_detections() -> None:
    boxes = torch.tensor([[40.0, 40.0, 70.0, 70.0], [44.0, 40.0, 74.0, 70.0]])  # their IoU is 0.76
    none = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool), torch.zeros(2, 0, 3)
    targets = encode(boxes, *none, 1, (80, 80), stride=2)
    heatmap = torch.logit(targets.heatmap.clamp(1e-4, 1 - 1e-4))[None]
    maps = HeadMaps(heatmap, DenseMap(targets.size[None]), DenseMap(targets.offset[None]))
    for stride, count in ((4, 2), (2, 1)):  # only finer strides than 4 have NMS
        [found] = split_batch(decode(maps, stride=stride))
        assert (np.ptp(found.boxes_xyxy[:, ::2], axis=1) > 0).sum() == count  # boxes of other cells are points
        assert found.scores.min() > 0


def test_photos_that_contradict_the_annotations_are_named(dataset: Dataset, tmp_path: Path) -> None:
    photo = dataset.photos[0]
    (tmp_path / "broken.png").write_bytes(photo.path.read_bytes()[:500])
    broken = dataclasses.replace(photo, path=tmp_path / "broken.png")
    turned = dataclasses.replace(photo, width=photo.height + 1, height=photo.width)
    for wrong, words in ((broken, "broken.png: "), (turned, "the annotations say")):
        with pytest.raises(InvalidDataset, match=words):
            detect_with_network(Oracle(), dataclasses.replace(dataset, photos=(wrong,)), 64, 0, Console(quiet=True))


def test_detections_of_several_scales_are_merged(dataset: Dataset) -> None:
    oracle = Oracle()
    found = detect_with_network(oracle, dataset, 128, 0, Console(quiet=True), TestTimeAugmentation(scales=(0.2, 1.0)))
    assert [shape[1] for shape in oracle.seen] == [64, 128]
    for photo, each in zip(dataset.photos, found, strict=True):
        expected = np.array([0.26, 0.25, 0.51, 0.75]) * photo.width  # the photos are square
        np.testing.assert_allclose(each.boxes_xyxy[0], expected, atol=0.1)
        assert each.scores[0] > 0.99
        assert each.scores[1] < 0.2  # the duplicate of the other scale
        assert (np.diff(each.scores) <= 0).all()


def test_flip_averages_heatmap_and_size(dataset: Dataset) -> None:
    oracle = Oracle()
    found = detect_with_network(oracle, dataset, 128, 0, Console(quiet=True), TestTimeAugmentation(flip=True))
    assert [shape[1] for shape in oracle.seen] == [128, 128]
    for photo, each in zip(dataset.photos, found, strict=True):
        expected = np.array([0.26, 0.5 - 0.1875, 0.51, 0.5 + 0.1875]) * photo.width
        np.testing.assert_allclose(each.boxes_xyxy[0], expected, atol=0.1)
        assert each.scores[0] > 0.99


def test_flip_averages_probabilities() -> None:
    class TwoCells(nn.Module):
        def forward(self, _: Tensor) -> HeadMaps:
            zeros = DenseMap(torch.zeros(1, 2, 1, 2))
            return HeadMaps(torch.logit(torch.tensor([[[[0.9, 0.5]]]])), zeros, zeros)

    maps = forward_with_flip(TwoCells(), torch.zeros(1, 4, 8, 3), ())
    torch.testing.assert_close(maps.heatmap.sigmoid(), torch.full((1, 1, 1, 2), 0.7))


class JointOracle(nn.Module):
    """Always detects the same box with two keypoints, mirrored in a mirrored image."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.first: Tensor | None = None

    def forward(self, images: Tensor) -> HeadMaps:
        is_mirrored = self.first is not None and torch.equal(images, self.first.flip(2))
        self.first = images
        box = torch.tensor([[18.0, 18.0, 98.0, 82.0]])
        joints = torch.tensor([[[26.0, 30.0, 2.0], [90.0, 42.0, 2.0]]])
        if is_mirrored:
            box = torch.stack([128 - box[:, 2], box[:, 1], 128 - box[:, 0], box[:, 3]], dim=1)
            joints = joints[:, [1, 0]] * torch.tensor([-1.0, 1.0, 1.0]) + torch.tensor([128.0, 0.0, 0.0])
        targets = encode(box, torch.tensor([1]), torch.tensor([False]), joints, 3, (32, 32))
        found = targets.keypoints
        logits = [torch.logit(each.clamp(1e-4, 1 - 1e-4)) for each in (targets.heatmap, found.heatmap)]
        heatmaps = [each.expand(len(images), *each.shape) for each in logits]
        read = (targets.size, targets.offset, found.places, found.offset)
        size, offset, places, within = (DenseMap(each.expand(len(images), *each.shape)) for each in read)
        return HeadMaps(heatmaps[0], size, offset, KeypointMaps(places, heatmaps[1], within))


@pytest.mark.parametrize("flip", [False, True])
def test_flip_swaps_left_and_right_keypoints(shapes: Path, tmp_path: Path, flip: bool) -> None:
    dataset = load_dataset(add_joints(shapes / "val.json", tmp_path / "joints.json"), shapes / "images")
    found = detect_with_network(JointOracle(), dataset, 128, 0, Console(quiet=True), TestTimeAugmentation(flip=flip))
    for photo, each in zip(dataset.photos, found, strict=True):
        assert each.keypoints is not None
        expected = np.array([[26, 30], [90, 42]]) / 128 * photo.width
        np.testing.assert_allclose(each.keypoints[0, :, :2], expected, atol=0.1)
        assert each.keypoints[0, :, 2].min() > 0.99


def test_flip_of_keypoints_needs_none_in_the_data(dataset: Dataset, tmp_path: Path) -> None:
    config = small_config(tmp_path, tmp_path)
    network = build_network(config, 3, joint_count=2)
    skeleton = Skeleton(("left_corner", "right_corner"))
    checkpoint = Checkpoint(config, dataset.labels, dataset.label_ids, {}, 0, "0", skeleton=skeleton)
    tta = TestTimeAugmentation(flip=True)
    found = detect_with_checkpoint(checkpoint, network, dataset, 64, Console(quiet=True), tta)
    assert all(each.keypoints is not None and each.keypoints.shape[1:] == (2, 3) for each in found)
    others = dataclasses.replace(dataset, skeleton=Skeleton(("nose", "tail")))
    with pytest.raises(InvalidDataset, match=r"val\.json: has other keypoints than the model"):
        detect_with_checkpoint(checkpoint, network, others, 64, Console(quiet=True), tta)


def test_soft_nms_lowers_scores_of_overlapping_boxes_of_a_class() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [50, 50, 55, 55]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([0, 0, 1, 0]))
    merged = soft_nms([found])
    assert merged.labels.tolist() == [0, 1, 0, 0]
    expected = [0.9, 0.7, 0.6, 0.8 * np.exp(-((9 / 11) ** 2) / 0.5)]
    np.testing.assert_allclose(merged.scores, expected, atol=1e-5)
    np.testing.assert_array_equal(merged.boxes_xyxy, boxes[[0, 2, 3, 1]])
    assert len(soft_nms([found, found]).scores) == 4  # as many as the larger set has
    faint = Detections(boxes[2:], np.array([0.0011, 0.0009], np.float32), np.array([0, 0]))
    assert len(soft_nms([faint]).scores) == 1


def reference_soft_nms(found: Detections) -> list[float]:
    scores, left = found.scores.astype(float), set(range(len(found.scores)))
    while left:
        best = max(left, key=lambda row: scores[row])
        left.remove(best)
        for row in left:
            if found.labels[row] == found.labels[best]:
                a, b = found.boxes_xyxy[[best, row]].astype(float)
                sides = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0)
                union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - sides.prod()
                scores[row] *= np.exp(-((sides.prod() / union) ** 2) / 0.5)
    return sorted(scores[scores >= 0.001], reverse=True)


@pytest.mark.parametrize("scale", [1, 16])
def test_soft_nms_does_not_depend_on_the_photos_size(scale: int) -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 300, (40, 2))
    boxes = np.hstack([corners, corners + random.uniform(50, 300, (40, 2))]).astype(np.float32)
    found = Detections(boxes * scale, random.random(40).astype(np.float32), random.integers(0, 2, 40))
    merged = soft_nms([found])
    np.testing.assert_allclose(merged.scores, reference_soft_nms(found), rtol=1e-4)


def test_command_accepts_test_time_augmentation_for_checkpoints_only(
    shapes: Path, tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(shapes, tmp_path)
    path = tmp_path / "random.pt"
    weights = build_network(config, 3).state_dict()
    Checkpoint(config, dataset.labels, dataset.label_ids, weights, 0, "0").save(path)
    main(["evaluate", str(path), "--flip", "--scales", "0.5,1"])
    assert "circle" in capsys.readouterr().out
    data = ["--annotations", str(shapes / "val.json"), "--images", str(shapes / "images"), "--json"]
    main(["evaluate", str(path), *data, str(tmp_path / "folder" / "as-trained.json")])
    turned = dataset.labels[::-1], dataset.label_ids[::-1]
    flipped = {key: value.flip(0) if key.startswith("heatmap_head.2.") else value for key, value in weights.items()}
    Checkpoint(config, *turned, flipped, 0, "0").save(path)
    main(["evaluate", str(path), *data, str(tmp_path / "turned.json")])  # labels are matched by name
    assert (tmp_path / "turned.json").read_text() == (tmp_path / "folder" / "as-trained.json").read_text()
    capsys.readouterr()
    fewer = build_network(config, 1).state_dict()
    Checkpoint(config, ("square",), (2,), fewer, 0, "0").save(path)
    main(["evaluate", str(path), *data, str(tmp_path / "fewer.json")])
    assert "counted with an AP of 0, as the model lacks them: circle, triangle\n" in capsys.readouterr().out
    Checkpoint(config, ("circle", "square", "star"), (1, 2, 3), weights, 0, "0").save(path)
    with pytest.raises(SystemExit):
        main(["evaluate", str(path), *data, str(tmp_path / "none.json")])
    assert "has no category star" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "model/weights/default.onnx", "--flip"])
    assert "need a checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", str(path), "--scales", "0,1"])
