from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from model.network.codec import Targets
from model.network.keypoints import KeypointTargets
from tests.training.configs import small_config
from tests.training.joints import JOINTS, add_joints
from training.datasets.load import load_dataset
from training.learner import Learner, choose_precision
from training.loader import MicroBatch, training_batches
from training.processes import SINGLE_PROCESS


def make_learner(
    shapes: Path, tmp_path: Path, joints: Sequence[str] = (), **settings: Any
) -> tuple[Learner, tuple[MicroBatch, ...]]:
    """Returns an fp32 learner with frozen batch-norm statistics, and the micro-batches of its first batch."""
    config = small_config(shapes, tmp_path, precision="fp32", **settings)
    annotations = add_joints(shapes / "train.json", tmp_path / "joints.json") if joints else shapes / "train.json"
    dataset = load_dataset(annotations, shapes / "images")
    learner = Learner(config, dataset, SINGLE_PROCESS, Console(quiet=True))
    learner.begin_epoch(0)
    for module in learner.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return learner, next(training_batches(dataset, config, 0, 0, torch.device("cpu")))


@pytest.mark.parametrize("joints", [(), JOINTS])
def test_gradients_of_micro_batches_equal_those_of_the_whole_batch(
    shapes: Path, tmp_path: Path, joints: Sequence[str]
) -> None:
    (whole, batch), (split, parts) = (
        make_learner(shapes, tmp_path, joints, seed=2, accumulate=count) for count in (1, 4)
    )
    assert [len(images) for images, _ in parts] == [2, 2, 2, 2]
    # dividing each micro-batch by its own object count would be wrong
    assert len({int(targets.mask.sum()) for _, targets in parts}) > 1
    one, other = whole.step(batch), split.step(parts)
    for name, loss in one.losses.items():
        assert other.losses[name].item() == pytest.approx(loss.item(), rel=1e-5)
    assert other.gradient_norm.item() == pytest.approx(one.gradient_norm.item(), rel=1e-4)
    for (name, mine), theirs in zip(whole.network.named_parameters(), split.network.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        distance = (mine.grad - theirs.grad).norm() / mine.grad.norm()
        assert distance < 1e-3, name


def test_batch_without_objects_still_has_gradients(shapes: Path, tmp_path: Path) -> None:
    learner, [(images, targets)] = make_learner(shapes, tmp_path)
    *boxes, joints = targets
    empty = Targets(*map(torch.zeros_like, boxes), KeypointTargets(*map(torch.zeros_like, joints)))
    found = learner.step([(images, empty)])
    assert all(loss.isfinite() for loss in found.losses.values())
    assert found.losses["heatmap"] > 0 and found.gradient_norm > 0


def test_learning_rate_scales_with_the_batch_size(shapes: Path, tmp_path: Path) -> None:
    settings = {"warmup_steps": 0, "learning_rate": 5e-4, "learning_rate_batch_size": 128}
    learner, parts = make_learner(shapes, tmp_path, **settings)
    assert learner.step(parts).learning_rate == pytest.approx(5e-4 * 8 / 128)
    rate = "learning rate 3.125e-05 (0.0005 is for batches of 128)"
    assert learner.describe_steps() == f"batches of 8 on cpu in fp32, {rate}"
    learner, parts = make_learner(shapes, tmp_path, warmup_steps=0, learning_rate=5e-4)
    assert learner.step(parts).learning_rate == 5e-4
    assert learner.describe_steps() == "batches of 8 on cpu in fp32, learning rate 0.0005"


def test_frozen_backbone_trains_after_its_frozen_epochs(shapes: Path, tmp_path: Path) -> None:
    lite = {"backbone": "efficientnet_lite0", "pretrained": "imagenet", "frozen_stages": 1, "weight_decay": 0.5}
    learner, parts = make_learner(shapes, tmp_path, freeze_backbone_epochs=1, **lite)
    stages = [nn.ModuleList(stage) for stage in learner.network.backbone.stages()]

    def find_changes(epoch: int) -> list[bool]:
        """Returns whether an epoch's first step changes each stage and, last, the neck."""
        learner.begin_epoch(epoch)
        groups = [*stages, learner.network.neck]
        before = [[value.clone() for value in group.state_dict().values()] for group in groups]
        learner.step(parts)
        return [
            any(not torch.equal(old, new) for old, new in zip(values, group.state_dict().values(), strict=True))
            for values, group in zip(before, groups, strict=True)
        ]

    assert find_changes(0) == [False] * len(stages) + [True]
    assert find_changes(1) == [False] + [True] * len(stages)


def test_heads_without_a_loss_do_not_change(shapes: Path, tmp_path: Path) -> None:
    learner, parts = make_learner(shapes, tmp_path, giou_weight=0.0, offset_weight=0.0)
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    assert set(learner.step(parts).losses) == {"heatmap", "size"}
    changed = {
        name.split(".")[0] for name, value in learner.network.state_dict().items() if (value != before[name]).any()
    }
    assert changed == {"backbone", "neck", "heatmap_head", "size_head"}
    # several processes would wait for the gradients of parameters that are not frozen
    frozen = {name.split(".")[0] for name, each in learner.network.named_parameters() if not each.requires_grad}
    assert frozen == {"offset_head"}


def test_channel_dropout_applies_only_in_training(shapes: Path, tmp_path: Path) -> None:
    learner, [(images, _)] = make_learner(shapes, tmp_path, channel_dropout=0.5, seed=3)
    network, seen = learner.network, []
    network.neck.register_forward_pre_hook(lambda _, maps: seen.append(maps[0]))
    network(images)
    network.eval()
    network(images)
    for with_dropout, without in zip(*seen, strict=True):
        is_dropped = (with_dropout == 0).flatten(2).all(2)
        kept = ~is_dropped
        assert 0.3 < is_dropped.float().mean() < 0.7
        torch.testing.assert_close(with_dropout[kept], 2 * without[kept])


def test_each_step_drops_other_channels(shapes: Path, tmp_path: Path) -> None:
    learner, parts = make_learner(shapes, tmp_path, channel_dropout=0.5)
    dropped: list[torch.Tensor] = []
    learner.network.neck.register_forward_pre_hook(lambda _, maps: dropped.append((maps[0][-1] == 0).flatten(2).all(2)))
    learner.step(parts)
    learner.step(parts)
    assert 0.3 < (dropped[0] != dropped[1]).float().mean() < 0.7


def test_gradients_are_clipped_to_the_configured_norm(shapes: Path, tmp_path: Path) -> None:
    learner, parts = make_learner(shapes, tmp_path, gradient_clip=0.125)
    assert learner.step(parts).gradient_norm > 1
    gradients = [each.grad.norm() for each in learner.network.parameters() if each.grad is not None]
    assert torch.stack(gradients).norm().item() == pytest.approx(0.125, rel=1e-4)


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True, "avx512_bf16": False}, "fp32")],
)
def test_auto_precision_is_bf16_only_on_cpus_that_support_it(
    capabilities: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", torch.device("cpu")) == precision
    assert choose_precision("fp16", torch.device("cpu")) == "fp16"


def test_run_resumes_in_another_precision(shapes: Path, tmp_path: Path) -> None:
    learner, parts = make_learner(shapes, tmp_path)
    learner.step(parts)
    dataset = load_dataset(shapes / "train.json", shapes / "images")
    scaled = Learner(small_config(shapes, tmp_path, precision="fp16"), dataset, SINGLE_PROCESS, Console(quiet=True))
    scaled.load_state_dict(learner.state_dict())
    assert scaled.scheduler.last_epoch == 1
