from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.configs import small_config
from training.optimizer import build_ema, build_optimizer
from training.weights.checkpoint import build_network


def test_the_backbone_has_its_own_rate_and_vectors_no_weight_decay(shapes: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 0.1, "backbone_learning_rate_scale": 0.5, "weight_decay": 0.02}
    config = small_config(shapes, tmp_path, **settings)
    network = build_network(config, 3)
    groups = build_optimizer(network, config).param_groups
    found = {parameter: (each["lr"], each["weight_decay"]) for each in groups for parameter in each["params"]}
    expected = {
        parameter: (0.05 if name.startswith("backbone.") else 0.1, 0.02 if parameter.ndim > 1 else 0.0)
        for name, parameter in network.named_parameters()
    }
    assert found == expected
    assert set(found.values()) == {(0.05, 0.02), (0.05, 0.0), (0.1, 0.02), (0.1, 0.0)}


def test_sgd_has_nesterov_momentum(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path, optimizer="sgd", learning_rate=0.1)
    network = build_network(config, 3)
    optimizer, bias = build_optimizer(network, config), network.size_head[2].bias
    assert bias.tolist() == [1, 1]
    bias.grad = torch.ones(2)
    optimizer.step()
    assert bias.tolist() == pytest.approx([1 - 0.19] * 2)  # 1 + 0.9 times the gradient
    optimizer.step()
    assert bias.tolist() == pytest.approx([1 - 0.19 - 0.271] * 2)  # 1 + 0.9 * 1.9


@pytest.mark.parametrize(("decay", "second"), [(0.998, 9.0), (0.1, 9.9)])
def test_averages_of_weights_and_statistics_forget_the_first_steps_quickly(decay: float, second: float) -> None:
    norm = nn.BatchNorm1d(1)
    ema = build_ema(norm, decay)  # type: ignore[arg-type]
    for value in (0.0, 11.0):  # the first update copies, the second has a decay of at most 2 / 11
        nn.init.constant_(norm.weight, value)
        nn.init.constant_(norm.running_mean, value)
        ema.update_parameters(norm)
    assert ema.module.weight.item() == pytest.approx(second)
    assert ema.module.running_mean.item() == pytest.approx(second)
