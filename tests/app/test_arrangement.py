"""The choice of an arrangement, from given speeds and from measured ones."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from app.inference.arrangement import batch_sizes, choose_arrangement
from app.schemas import Arrangement
from app.settings import Settings
from model.canvas import Canvases
from model.detector import Detector
from tests.app.detectors import HeldDetector

BLANK = np.zeros((64, 96, 3), np.uint8)


@pytest.fixture
def detector(model_path: Path) -> Detector:
    return HeldDetector(model_path)


def choose(
    detector: Detector, images_per_second: Callable[[int, int], float], **set_by_hand: object
) -> tuple[int, int, int]:
    def measure(_: Detector, canvases: Canvases, trial: Arrangement) -> float:
        assert len(canvases) == trial.max_batch
        return images_per_second(trial.instances, trial.max_batch)

    settings = Settings.model_validate({"threads": 4, **set_by_hand})
    found = choose_arrangement(detector, BLANK, settings, measure)
    assert found.images_per_second == images_per_second(found.instances, found.max_batch)
    return found.instances, found.threads, found.max_batch


def test_several_instances_are_chosen_if_they_are_faster(detector: Detector) -> None:
    assert choose(detector, lambda instances, _: 100 * instances) == (4, 1, 1)
    assert choose(detector, lambda instances, _: 100 * min(instances, 2)) == (4, 1, 1)
    assert choose(detector, lambda instances, _: 100 if instances == 2 else 90) == (2, 2, 1)


def test_a_larger_batch_must_be_worth_its_latency(detector: Detector) -> None:
    assert choose(detector, lambda instances, size: (100 + size) / instances) == (1, 4, 1)
    assert choose(detector, lambda instances, size: 100 * min(size, 4) / instances) == (1, 4, 4)
    assert choose(detector, lambda _, size: 100 * size, instances=1) == (1, 4, 8)
    assert choose(detector, lambda instances, _: 100 / instances, max_batch=6) == (1, 4, 6)


def test_fast_model_gets_one_instance_more_than_cpus_and_larger_batches(detector: Detector) -> None:
    def quick(instances: int, _: int) -> float:
        return 250 * min(instances, 4)  # 4 ms an image on one thread

    def quick_alone(instances: int, size: int) -> float:
        return quick(instances, size) * (1 if size == 1 else 0.9)

    assert choose(detector, quick) == (5, 1, 8)
    assert choose(detector, quick_alone) == (5, 1, 1)
    assert choose(detector, lambda instances, size: quick(instances, size) * size) == (5, 1, 8)
    assert choose(detector, quick, max_batch_seconds=0.01) == (5, 1, 1)
    assert choose(detector, quick, max_batch=2) == (5, 1, 2)
    assert choose(detector, quick, instances=4) == (4, 1, 8)
    assert choose(detector, quick, threads=1) == (1, 1, 8)
    assert choose(detector, lambda instances, size: quick(instances, size) / 2) == (4, 1, 1)
    assert choose(detector, lambda instances, _: 300 / instances) == (1, 4, 1)


def test_a_gpu_gets_one_instance_and_larger_batches(detector: Detector) -> None:
    detector.provider = "cuda"
    assert choose(detector, lambda _, size: 1000 * size) == (1, 4, 32)


def test_time_per_batch_is_limited(detector: Detector) -> None:
    detector.provider = "cuda"
    # 0.02 s and 0.01 s an image
    assert choose(detector, lambda _, size: size / (0.02 + 0.01 * size), max_batch_seconds=0.08) == (1, 4, 4)


@pytest.mark.parametrize(
    ("alone", "tried"),
    [
        ((0.01, 0.015), [(2, 1), (1, 1), (2, 2)]),  # much slower for single images: no batch size makes up for that
        ((0.003, 0.0105), [(2, 1), (1, 1), (2, 2), (1, 2)]),  # nearly as fast, gains a lot, but not enough
    ],
)
def test_batch_sizes_that_cannot_be_fastest_are_not_measured(
    detector: Detector, alone: tuple[float, float], tried: list[tuple[int, int]]
) -> None:
    measured = []

    def measure(_: Detector, canvases: Canvases, trial: Arrangement) -> float:
        measured.append((trial.instances, trial.max_batch))
        batch_seconds, image_seconds = {2: (0.001, 0.02), 1: alone}[trial.instances]  # two instances gain too little
        return trial.instances * len(canvases) / (batch_seconds + image_seconds * len(canvases))

    found = choose_arrangement(detector, BLANK, Settings(threads=2), measure)
    assert (found.instances, found.max_batch) == (2, 1)
    assert measured == tried


def test_sessions_of_other_arrangements_are_closed(detector: Detector) -> None:
    assert choose(detector, lambda instances, _: 100 if instances == 2 else 90) == (2, 2, 1)
    assert detector.infer([BLANK], 2)
    with pytest.raises(KeyError):
        detector.infer([BLANK], 1)


def test_configured_arrangement_is_not_measured(detector: Detector) -> None:
    def measure(*_: object) -> NoReturn:
        raise AssertionError

    found = choose_arrangement(detector, BLANK, Settings(threads=4, instances=2, max_batch=3), measure)
    assert found == Arrangement(instances=2, threads=2, max_batch=3)
    assert detector.infer([np.zeros((64, 96, 3), np.uint8)] * 3, 2)


def test_a_measured_arrangement_can_be_run(detector: Detector) -> None:
    found = choose_arrangement(detector, BLANK, Settings(threads=2))
    assert found.images_per_second and found.images_per_second > 0
    assert len(detector.infer([BLANK] * found.max_batch, found.threads if found.instances > 1 else None)) > 0


def test_batch_sizes_are_the_powers_of_two_and_the_largest() -> None:
    assert (batch_sizes(1), batch_sizes(8), batch_sizes(12)) == ([1], [1, 2, 4, 8], [1, 2, 4, 8, 12])


@pytest.mark.parametrize("threads", [1, 2])
def test_session_with_fewer_threads_gives_the_same_detections(model_path: Path, threads: int) -> None:
    detector = Detector(model_path, "cpu", 2)
    detector.add_session(threads)
    canvas = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    [all_threads], [fewer] = detector.infer([canvas]), detector.infer([canvas], threads)
    np.testing.assert_allclose(fewer.boxes_xyxy, all_threads.boxes_xyxy, rtol=1e-5)
