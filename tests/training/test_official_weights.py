import datetime
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from model.detector import Detector
from model.network.backbones.hourglass import Hourglass
from model.network.centernet import BACKBONES, CenterNet
from model.network.heads import HeadMaps, KeypointMaps
from tests.training import published, references
from tests.training.published import CTDET, MULTI_POSE, PASCAL, Shapes
from training.__main__ import main
from training.weights.checkpoint import load_checkpoint
from training.weights.files import InvalidWeights
from training.weights.official_weights import import_weights, read_official_weights
from training.weights.pretrained import load_pretrained

# file → its keys and shapes; our backbone, neck, widths of neck and heads; number of labels and keypoints
PUBLISHED: dict[str, tuple[Shapes, str, str, int, int, int, int]] = {
    "ctdet_coco_resdcn18": (
        published.authors_resnet(18, CTDET, True), "resnet18", "deformable", 64, 64, 80, 0,
    ),
    "ctdet_coco_resdcn101": (
        published.authors_resnet(101, CTDET, True), "resnet101", "deformable", 64, 64, 80, 0,
    ),
    "ctdet_coco_dla": (published.authors_dla(CTDET), "dla34", "aggregation", 64, 256, 80, 0),
    "ctdet_coco_hg": (
        published.authors_hourglass(CTDET, *published.HOURGLASS_104), "hourglass104", "none", 256, 256, 80, 0,
    ),
    "ctdet_pascal_resdcn18": (
        published.authors_resnet(18, PASCAL, True), "resnet18", "deformable", 64, 64, 20, 0,
    ),
    "ctdet_pascal_resdcn101": (
        published.authors_resnet(101, PASCAL, True), "resnet101", "deformable", 64, 64, 20, 0,
    ),
    "ctdet_pascal_dla": (published.authors_dla(PASCAL), "dla34", "aggregation", 64, 256, 20, 0),
    "multi_pose_dla": (published.authors_dla(MULTI_POSE), "dla34", "aggregation", 64, 256, 1, 17),
    "multi_pose_hg": (
        published.authors_hourglass(MULTI_POSE, *published.HOURGLASS_104), "hourglass104", "none", 256, 256, 1, 17,
    ),
    "multi_pose_res18": (
        published.authors_resnet(18, MULTI_POSE, False), "resnet18", "transposed", 256, 64, 1, 17,
    ),
    "centernet_resnet18": (
        published.mmdetection_resnet18(False), "resnet18", "convolutional", 64, 64, 80, 0,
    ),
    "centernet_resnet18_dcnv2": (
        published.mmdetection_resnet18(True), "resnet18", "deformable", 64, 64, 80, 0,
    ),
}  # fmt: skip
UNUSED = ("base.fc.", "base.level3.project.", "base.level4.project.")  # the authors' own forward pass never reads them


def save(path: Path, weights: dict[str, Tensor], **beside: Any) -> Path:
    torch.save({"epoch": 140, "state_dict": weights} | beside, path)
    return path


def make_image(side: int = 64) -> Tensor:
    """(1, side, side, 3), uint8, RGB."""
    return torch.randint(0, 256, (1, side, side, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def normalize_like_authors(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    bgr = images.flip(3) / 255.0
    return ((bgr - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


def normalize_for_coco(images: Tensor) -> Tensor:
    return normalize_like_authors(images, [0.40789654, 0.44719302, 0.47026115], [0.28863828, 0.27408164, 0.27809835])


def build(path: Path) -> CenterNet:
    checkpoint, _ = import_weights(path, "imported", 128)
    return checkpoint.build_network()


def assert_maps_equal(found: HeadMaps, expected: list[Tensor]) -> None:
    ours = [found.heatmap, found.size.dense(), found.offset.dense()]
    if isinstance(found.keypoints, KeypointMaps):
        ours += [found.keypoints.places.dense(), found.keypoints.heatmap, found.keypoints.offset.dense()]
    for one, other in zip(ours, expected, strict=True):
        assert other.flatten(2).std(2).median() > 0.02  # otherwise the comparison would be trivial
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_file_is_recognised_and_every_key_is_used(name: str, tmp_path: Path) -> None:
    shapes, backbone, neck, neck_width, head_width, class_count, joint_count = PUBLISHED[name]
    weights = published.empty_weights(shapes)
    checkpoint, _ = import_weights(save(tmp_path / "model.pth", weights), name, 512)
    config = checkpoint.config
    assert (config.backbone, config.neck, config.neck_width, config.head_width) == (
        backbone, neck, neck_width, head_width,
    )  # fmt: skip
    assert (len(checkpoint.labels), len(checkpoint.skeleton.joints)) == (class_count, joint_count)
    values = {float(value.flatten()[0]) for value in checkpoint.weights.values()}
    values |= {16 * value for value in values}  # sizes and keypoint positions have another unit
    unused = {key for key, value in weights.items() if float(value.flatten()[0]) not in values}
    assert unused == {key for key in weights if key.startswith(UNUSED)}
    with torch.device("meta"):
        network = CenterNet(backbone, class_count, neck_width, head_width, neck, joint_count)
    expected = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in checkpoint.weights.items()} == expected


@pytest.mark.parametrize("name", ["ctdet_coco_resdcn18", "ctdet_coco_dla", "ctdet_coco_hg", "centernet_resnet18_dcnv2"])
def test_file_with_wrong_keys_lists_all_of_them(name: str, tmp_path: Path) -> None:
    weights = published.empty_weights(PUBLISHED[name][0])
    lost = [key for key in weights if key.endswith((".running_mean", "conv_offset_mask.bias", ".conv_offset.bias"))][
        -3:
    ]
    odd = next(key for key in weights if key.endswith("conv1.weight"))
    for key in lost:
        del weights[key]
    weights |= {odd: torch.zeros(5), "extra.weight": torch.zeros(1)}
    with pytest.raises(InvalidWeights) as fault:
        read_official_weights(save(tmp_path / "model.pth", weights))
    faults = str(fault.value).split(": ", 1)[1].split(", ")
    assert {f"missing {key}" for key in lost} <= set(faults)
    assert "unknown extra.weight" in faults
    assert f"{odd} is (5,) instead of" in str(fault.value)


def test_old_file_format_and_module_prefix_are_read(tmp_path: Path) -> None:
    shapes = published.authors_resnet(18, CTDET, True)
    weights = {f"module.{k}": v for k, v in published.empty_weights(shapes).items() if "num_batches" not in k}
    path = tmp_path / "old.pth"
    content = {"epoch": 1, "state_dict": weights, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    official = read_official_weights(path)
    assert official.network_settings["backbone"] == "resnet18"
    assert official.weights["backbone.bn1.num_batches_tracked"] == 0


def test_labels_and_ids_are_those_of_the_data_set(tmp_path: Path) -> None:
    coco, voc, people = (
        import_weights(save(tmp_path / "a.pth", published.empty_weights(PUBLISHED[name][0])), "a", 512)[0]
        for name in ("ctdet_coco_resdcn18", "ctdet_pascal_resdcn18", "multi_pose_res18")
    )
    ids = dict(zip(coco.labels, coco.label_ids, strict=True))
    assert (ids["person"], ids["stop sign"], ids["tv"], ids["toothbrush"]) == (1, 13, 72, 90)
    assert sorted(set(range(1, 91)) - set(coco.label_ids)) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert list(coco.label_ids) == sorted(coco.label_ids)
    assert voc.labels == tuple(sorted(voc.labels)) and voc.label_ids == tuple(range(1, 21))
    assert {"aeroplane", "diningtable", "tvmonitor"} < set(voc.labels)
    assert people.labels == ("person",)


def test_unknown_class_counts_and_networks_are_rejected(tmp_path: Path) -> None:
    for class_count in (1, 3):  # one class without keypoints is not people
        own_data = published.empty_weights(published.authors_resnet(18, CTDET | {"hm": class_count}, True))
        with pytest.raises(InvalidWeights, match=f"has {class_count} classes with 0 keypoints"):
            read_official_weights(save(tmp_path / "a.pth", own_data))
    with pytest.raises(InvalidWeights, match=r"hm\.2\.weight is \(3,\)"):
        read_official_weights(save(tmp_path / "c.pth", own_data | {"hm.2.weight": torch.zeros(3)}))
    with pytest.raises(InvalidWeights, match="match no CenterNet"):
        read_official_weights(save(tmp_path / "b.pth", {"conv1.weight": torch.zeros(1)}))


def test_invalid_input_size_is_rejected_before_writing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "hg.pth", published.empty_weights(PUBLISHED["ctdet_coco_hg"][0]))
    with pytest.raises(SystemExit):
        main(["import", str(path), str(tmp_path / "hg.pt"), "--input-size", "320"])
    assert "input_size: must be a multiple of 128" in capsys.readouterr().err
    assert not (tmp_path / "hg.pt").exists()


def test_python_objects_in_the_file_are_named_with_a_workaround(tmp_path: Path) -> None:
    path = save(tmp_path / "log.pth", {"w": torch.zeros(1)}, meta={"time": datetime.timedelta(seconds=1)})
    with pytest.raises(InvalidWeights, match=r"Python objects \(datetime.timedelta\).*save its weights alone"):
        read_official_weights(path)


@torch.inference_mode()
def test_authors_resdcn_equals_reference_in_their_channel_order(tmp_path: Path) -> None:
    for heads, mean, std in (
        (CTDET, [0.40789654, 0.44719302, 0.47026115], [0.28863828, 0.27408164, 0.27809835]),
        (PASCAL, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ):
        weights = published.random_weights(published.authors_resnet(18, heads, True))
        features = references.authors_resdcn18(weights, normalize_like_authors(make_image(), mean, std))
        expected = references.read_heads(weights, ["hm", "wh", "reg"], "0", "2", features)
        assert_maps_equal(build(save(tmp_path / "model.pth", weights))(make_image()), expected)


@torch.inference_mode()
def test_authors_pose_resnet_equals_reference(tmp_path: Path) -> None:
    weights = published.random_weights(published.authors_resnet(18, MULTI_POSE, False))
    features = references.authors_res18(weights, normalize_for_coco(make_image()))
    names = ["hm", "wh", "reg", "hps", "hm_hp", "hp_offset"]
    expected = references.read_heads(weights, names, "0", "2", features)
    assert_maps_equal(build(save(tmp_path / "model.pth", weights))(make_image()), expected)


@pytest.mark.parametrize("deformable", [False, True])
@torch.inference_mode()
def test_mmdetection_equals_reference(deformable: bool, tmp_path: Path) -> None:
    weights = published.random_weights(published.mmdetection_resnet18(deformable))
    normalized = (make_image() - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    features = references.mmdetection_resnet18(weights, normalized.permute(0, 3, 1, 2))
    names = ["bbox_head.heatmap_head", "bbox_head.wh_head", "bbox_head.offset_head"]
    expected = references.read_heads(weights, names, "0", "2", features)
    assert_maps_equal(build(save(tmp_path / "model.pth", weights, meta={"epoch": 140}))(make_image()), expected)


@torch.inference_mode()
def test_authors_dla_equals_reference(tmp_path: Path) -> None:
    weights = published.random_weights(published.authors_dla(MULTI_POSE))
    network = build(save(tmp_path / "model.pth", weights))
    maps = network.backbone((make_image().permute(0, 3, 1, 2) - network.mean) / network.std)
    features = references.authors_aggregation(weights, maps)
    torch.testing.assert_close(network.neck(maps), features, atol=1e-4, rtol=1e-4)
    names = ["hm", "wh", "reg", "hps", "hm_hp", "hp_offset"]
    assert_maps_equal(network(make_image()), references.read_heads(weights, names, "0", "2", features))
    stem = references.convolve(weights, "base.base_layer.0", normalize_for_coco(make_image()))
    own = network.backbone.get_submodule("base_layer.0")
    normalized = (make_image().permute(0, 3, 1, 2) - network.mean) / network.std
    torch.testing.assert_close(own(normalized), stem, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_authors_hourglass_equals_reference_in_both_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths, repeats = (16, 24, 32), (2, 1, 3)
    monkeypatch.setitem(BACKBONES, "hourglass104", lambda: Hourglass(2, widths, repeats, out_width=16))
    weights = published.random_weights(published.authors_hourglass(CTDET, widths, repeats, 8, 16))
    network = build(save(tmp_path / "model.pth", weights))
    stacks = references.authors_hourglass(weights, normalize_for_coco(make_image()))
    first, last = (
        references.read_heads(weights, [f"{name}.{stack}" for name in CTDET], "0.conv", "1", features)
        for stack, features in enumerate(stacks)
    )
    found = network(make_image())
    assert found.earlier == ()
    assert_maps_equal(found, last)
    network.train().backbone.eval()
    found = network(make_image())
    assert_maps_equal(found, last)
    [earlier] = found.earlier
    assert_maps_equal(earlier, first)


def test_exported_import_detects_the_same_as_the_reference(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = published.random_weights(published.authors_resnet(18, CTDET, True))
    weights["wh.2.bias"] += 4.0
    path = save(tmp_path / "ctdet_coco_resdcn18.pth", weights)
    main(["import", str(path), str(tmp_path / "r18.pt"), "--input-size", "64"])
    assert "80 classes of COCO 2017" in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "r18.pt")
    assert checkpoint.config.name == "r18"
    content = json.loads((shapes / "val.json").read_text())
    content["categories"] = [
        {"id": each, "name": label} for each, label in zip(checkpoint.label_ids, checkpoint.labels, strict=True)
    ]
    (tmp_path / "val.json").write_text(json.dumps(content))
    data = ["--annotations", str(tmp_path / "val.json"), "--images", str(shapes / "images")]
    main(["export", str(tmp_path / "r18.pt"), str(tmp_path / "r18.onnx"), *data])

    detector = Detector(tmp_path / "r18.onnx", "cpu")
    assert detector.metadata.labels[0] == "person" and detector.metadata.label_ids[-1] == 90
    canvas = cv2.resize(cv2.imread(str(shapes / "images" / "val_00001.png"))[..., ::-1], (64, 64))
    [found] = detector.infer([np.ascontiguousarray(canvas)])
    features = references.authors_resdcn18(weights, normalize_for_coco(torch.from_numpy(canvas.copy())[None]))
    heatmap, size, offset = references.read_heads(weights, ["hm", "wh", "reg"], "0", "2", features)
    label, row, column = np.unravel_index(int(heatmap.argmax()), heatmap.shape[1:])
    width, height = size[0, :, row, column].clamp(min=0).tolist()
    x, y = (offset[0, :, row, column] + torch.tensor([column, row])).tolist()
    assert found.labels[0] == label
    assert found.scores[0] == pytest.approx(heatmap.sigmoid().max().item(), abs=1e-4)
    box = [4 * (x - width / 2), 4 * (y - height / 2), 4 * (x + width / 2), 4 * (y + height / 2)]
    np.testing.assert_allclose(found.boxes_xyxy[0], box, atol=0.02)


def test_fine_tuning_imported_weights_needs_their_normalisation(tmp_path: Path) -> None:
    weights = published.empty_weights(PUBLISHED["ctdet_coco_resdcn18"][0])
    checkpoint, _ = import_weights(save(tmp_path / "model.pth", weights), "imported", 512)
    checkpoint.save(tmp_path / "imported.pt")
    config = checkpoint.config
    with pytest.raises(InvalidWeights, match=r"--mean 119\.9.*,114\.0.*,104\.0"):
        load_pretrained(CenterNet("resnet18", 80, neck="deformable"), str(tmp_path / "imported.pt"), checkpoint.labels)
    alike = CenterNet("resnet18", 80, neck="deformable", mean=config.mean, std=config.std)
    assert "everything" in load_pretrained(alike, str(tmp_path / "imported.pt"), checkpoint.labels)
