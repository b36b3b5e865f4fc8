import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.network.centernet import CenterNet
from training.evaluation.calibration import PlattScaling, ScoredDetections, cross_validate, fit_platt_scaling
from training.evaluation.diagnosis import measure_calibration


def draw_underconfident(count: int, seed: int) -> ScoredDetections:
    """Draws detections whose logits are a third of the calibrated ones, plus an offset."""
    random = np.random.default_rng(seed)
    logits = random.uniform(-5, 5, count)
    is_correct = random.random(count) < 1 / (1 + np.exp(-logits))
    scores = (1 / (1 + np.exp(-(logits - 0.6) / 3))).astype(np.float32)
    return ScoredDetections(scores, is_correct, np.arange(count))


def test_scaling_lowers_the_calibration_error_on_unseen_detections() -> None:
    evidence = draw_underconfident(20_000, seed=0)
    scaling = fit_platt_scaling(evidence)
    assert scaling is not None
    assert scaling == pytest.approx((3.0, 0.6), abs=0.15)
    unseen = draw_underconfident(20_000, seed=1)
    before = measure_calibration(unseen.scores, unseen.is_correct).error
    after = measure_calibration(scaling.apply(unseen.scores), unseen.is_correct).error
    assert before is not None and after is not None
    assert before > 0.1
    assert after < 0.02
    gain = cross_validate(evidence)
    assert gain is not None
    assert gain[0] > 0.1 > 5 * gain[1]


def test_calibration_error_is_measured_on_photos_that_were_not_fitted() -> None:
    random = np.random.default_rng(0)
    photos = np.arange(4000)
    logits = random.uniform(-2, 2, 4000)
    shift = np.where(photos % 2 == 0, 2, -2)  # even photos have better detections than their scores say
    is_correct = random.random(4000) < 1 / (1 + np.exp(-(logits + shift)))
    gain = cross_validate(ScoredDetections((1 / (1 + np.exp(-logits))).astype(np.float32), is_correct, photos))
    assert gain is not None
    assert gain[0] < 0.2 < 0.5 < gain[1]


@pytest.mark.parametrize(
    ("scores", "is_correct"),
    [
        (np.linspace(0.1, 0.9, 100), np.arange(100) < 5),  # too few true positives
        (np.linspace(0.1, 0.9, 100), np.ones(100)),  # no false positives
        (np.linspace(0.1, 0.9, 100), np.arange(100) < 50),  # lower scores are correct
        (np.repeat([0.05, 0.999], [89, 11]), np.arange(100) < 89),  # the same, where a Newton step would overflow
        (np.full(100, 0.04), np.arange(100) < 50),  # all below the minimum score
    ],
)
def test_no_scaling_is_fitted_to_uninformative_scores(
    scores: NDArray[np.float64], is_correct: NDArray[np.bool_]
) -> None:
    evidence = ScoredDetections(scores.astype(np.float32), is_correct.astype(np.bool_), np.arange(100))
    assert fit_platt_scaling(evidence) is None
    assert cross_validate(evidence) is None


def test_separable_scores_have_a_finite_slope() -> None:
    scaling = fit_platt_scaling(
        ScoredDetections(np.linspace(0.1, 0.9, 100, dtype=np.float32), np.arange(100) >= 50, np.arange(100))
    )
    assert scaling is not None
    assert 1 < scaling.slope < 1e3


def test_folded_scaling_equals_applied_scaling() -> None:
    torch.manual_seed(0)
    network = CenterNet("resnet18", class_count=3, neck_width=8, head_width=8).eval()
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        before = network(image)
        size = before.size.dense()
    PlattScaling(2.5, 1.5).fold_into(network)
    with torch.inference_mode():
        after = network(image)
        torch.testing.assert_close(after.size.dense(), size)
    torch.testing.assert_close(after.heatmap, 2.5 * before.heatmap + 1.5)
    scores = before.heatmap.sigmoid().flatten().numpy()
    np.testing.assert_allclose(
        PlattScaling(2.5, 1.5).apply(scores), after.heatmap.sigmoid().flatten().numpy(), rtol=1e-3, atol=1e-6
    )
