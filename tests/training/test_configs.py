"""Every recipe is valid and builds its network; those of the paper have the paper's settings."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from training.config_file import load_config
from training.weights.checkpoint import build_network

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
RECIPES = sorted(CONFIGS.glob("*.toml"))
PAPER_RECIPES = [path for path in RECIPES if path.stem.startswith(("coco", "voc")) and not path.stem.endswith("-ours")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_has_its_files_name_and_trains_every_parameter(path: Path) -> None:
    config = load_config(path, {})
    assert config.name == path.stem
    cells = config.input_size // 4
    with FakeTensorMode():  # shapes only, so that the largest network takes no memory
        network = build_network(config, 80)
        maps = network(torch.zeros(2, config.input_size, config.input_size, 3, dtype=torch.uint8))
        found = [
            each
            for stack in (*maps.earlier, maps)
            for each in (stack.heatmap, stack.size.dense(), stack.offset.dense())
        ]
        torch.stack([each.sum() for each in found]).sum().backward()
    assert maps.heatmap.shape == (2, 80, cells, cells)
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("path", PAPER_RECIPES, ids=lambda path: path.stem)
def test_paper_recipes_have_the_papers_settings(path: Path) -> None:
    config = load_config(path, {})
    assert (config.optimizer, config.radius, config.radius_iou) == ("adam", "published", 0.7)
    assert (config.heatmap_loss, config.heatmap_weight, config.offset_weight) == ("focal", 1, 0.5)
    assert (config.size_weight, config.giou_weight) == (0.05, 0)
    assert (config.weight_decay, config.warmup_steps, config.ema_decay, config.mosaic) == (0, 0, 0, 0)
    assert (config.scale_range, config.flip, config.color_jitter, config.aspect_jitter) == ((0.6, 1.3), 0.5, 0.4, 0)
    assert config.lighting == 0.1
    assert (config.frozen_stages, config.freeze_statistics, config.backbone_learning_rate_scale) == (0, False, 1)
    assert config.batch_size == config.learning_rate_batch_size
    schedule = (config.batch_size, config.learning_rate, config.epochs, config.learning_rate_drops)
    if path.stem.startswith("voc"):
        assert schedule == (32, 1.25e-4, 70, (45, 60))
    else:
        assert schedule in {(128, 5e-4, 140, (90, 120)), (128, 5e-4, 230, (180, 210)), (24, 2.5e-4, 50, (40,))}


def test_learning_rate_of_a_recipe_for_eight_gpus_scales_to_one() -> None:
    config = load_config(CONFIGS / "coco-resnet18.toml", {"batch_size": "16"})
    assert config.scaled_learning_rate == pytest.approx(6.25e-5)
