from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.training.configs import small_config
from training.augment import Example, paste_object, random_mosaic, random_view
from training.config import Config
from training.datasets.dataset import Objects


def example_of(
    pixels: NDArray[np.uint8], boxes: NDArray[np.float32], labels: list[int], is_ignored: list[bool] | None = None
) -> Example:
    ignored = np.array(is_ignored or [False] * len(labels), np.bool_)
    no_joints = np.zeros((len(labels), 0, 3), np.float32)
    return Example(pixels, Objects(boxes, np.array(labels, np.int64), ignored, no_joints))


@pytest.fixture
def config(shapes: Path, tmp_path: Path) -> Config:
    return small_config(shapes, tmp_path, color_jitter=0.0, scale_range=(0.7, 2.5))


def test_boxes_follow_the_pixels(config: Config) -> None:
    image = np.zeros((120, 200, 3), np.uint8)
    image[30:70, 50:130] = (255, 0, 0)
    box = np.array([[50, 30, 130, 70]], np.float32)
    errors = []
    for seed in range(40):
        example = example_of(image, box, [7])
        view, (boxes, labels, *_), _ = random_view(example, 160, config, np.random.default_rng(seed))
        if len(boxes) == 0:
            continue
        assert labels.tolist() == [7]
        redness = view[:, :, 0].astype(float) - view[:, :, 1]
        across, down = redness.sum(0) / redness.sum(), redness.sum(1) / redness.sum()
        middles = [(across * (np.arange(160) + 0.5)).sum(), (down * (np.arange(160) + 0.5)).sum()]
        errors.append((boxes[0, :2] + boxes[0, 2:]) / 2 - middles)
        assert redness.sum() / 255 == pytest.approx((boxes[0, 2:] - boxes[0, :2]).prod(), rel=0.02)
    assert len(errors) > 20
    assert np.abs(errors).max() < 0.25  # error of linear interpolation
    assert np.abs(np.mean(errors, axis=0)).max() < 0.05


def test_scale_aspect_and_place_cover_their_ranges_evenly(config: Config) -> None:
    whole = example_of(np.zeros((100, 100, 3), np.uint8), np.array([[0, 0, 100, 100]], np.float32), [0])
    drawn = config.model_copy(update={"scale_range": (0.25, 0.5), "aspect_jitter": 0.6})
    views = [random_view(whole, 64, drawn, np.random.default_rng(seed)) for seed in range(400)]
    boxes = np.concatenate([view.objects.boxes_xyxy for view in views])
    sides = boxes[:, 2:] - boxes[:, :2]
    scale, aspect = np.log2(sides.prod(1) ** 0.5 / 64), np.log(sides[:, 0] / sides[:, 1])
    place = boxes[:, :2] / (64 - sides)  # 0: at the left or top edge, 1: at the right or bottom one
    ranges = [(scale, -2, -1), (aspect, -0.6, 0.6), (place[:, 0], 0, 1), (place[:, 1], 0, 1)]
    for values, low, high in ranges:
        margin = 0.05 * (high - low)
        assert low - 1e-4 <= values.min() < low + margin and high - margin < values.max() <= high + 1e-4
        assert values.mean() == pytest.approx((low + high) / 2, abs=margin)


def test_objects_outside_the_crop_are_dropped(config: Config) -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[0, 0, 100, 100], [0, 0, 6, 6]], np.float32)
    kept = set()
    for seed in range(40):
        example = example_of(image, boxes, [0, 1])
        _, (left, labels, *_), _ = random_view(example, 64, config, np.random.default_rng(seed))
        assert ((left >= 0) & (left <= 64)).all()
        assert (left[:, 2:] - left[:, :2] >= 2).all()
        kept.add(tuple(labels.tolist()))
    assert kept >= {(0,), (0, 1)}


def test_colors_change_only_with_color_jitter(config: Config) -> None:
    image = np.full((64, 64, 3), (200, 100, 50), np.uint8)
    example = example_of(image, np.zeros((0, 4), np.float32), [])
    still = config.model_copy(update={"scale_range": (1.0, 1.0), "aspect_jitter": 0.0})
    plain, *_ = random_view(example, 64, still, np.random.default_rng(0))
    assert (plain == image).all()
    jittered = still.model_copy(update={"color_jitter": 0.4})
    views = [random_view(example, 64, jittered, np.random.default_rng(seed)).pixels[32, 32] for seed in range(20)]
    assert np.std(views, axis=0).min() > 10


def test_contrast_turns_around_middle_grey(config: Config) -> None:
    image = np.full((16, 16, 3), 128, np.uint8)
    jittered = config.model_copy(update={"scale_range": (1.0, 1.0), "aspect_jitter": 0.0, "color_jitter": 0.4})
    example = example_of(image, np.zeros((0, 4), np.float32), [])
    seen = [random_view(example, 16, jittered, np.random.default_rng(seed)).pixels[8, 8] for seed in range(200)]
    shift = np.abs(np.array(seen) - 128.0).max()
    assert 0.4 * 128 - 5 < shift <= 0.4 * 128 + 0.1 * 1.4 * 128 + 1  # brightness, and a tint of the contrast


@pytest.mark.parametrize("flip", [0, 1])
def test_flip_is_drawn_with_its_probability(config: Config, flip: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    example = example_of(image, np.array([[0, 2, 4, 6]], np.float32), [0])
    still = config.model_copy(update={"scale_range": (1.0, 1.0), "aspect_jitter": 0.0, "flip": float(flip)})
    for seed in range(10):
        view = random_view(example, 16, still, np.random.default_rng(seed))
        np.testing.assert_array_equal(view.pixels, image[:, ::-1] if flip else image)
        np.testing.assert_allclose(view.objects.boxes_xyxy, [[12, 2, 16, 6] if flip else [0, 2, 4, 6]], atol=1e-4)


def test_lighting_shifts_colours_along_the_principal_axis(config: Config) -> None:
    image = np.full((16, 16, 3), 128, np.uint8)
    lit = config.model_copy(update={"scale_range": (1.0, 1.0), "aspect_jitter": 0.0, "lighting": 0.1})
    example = example_of(image, np.zeros((0, 4), np.float32), [])
    seen = [random_view(example, 16, lit, np.random.default_rng(seed)).pixels[8, 8] for seed in range(200)]
    shifts = np.array(seen) - 128.0
    variances, axes = np.linalg.eigh(np.cov(shifts.T))
    assert variances[2] ** 0.5 == pytest.approx(0.1 * 0.2142 * 255, rel=0.2)
    assert abs(axes[:, 2] @ [0.5609, 0.5833, 0.5875]) > 0.99  # nearly grey: brightness varies most
    assert variances[1] < 0.05 * variances[2]


def test_view_depends_only_on_its_seed(config: Config) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
    example = example_of(image, np.array([[5, 5, 40, 40]], np.float32), [0])
    first = random_view(example, 64, config, np.random.default_rng((1, 2, 3)))
    again = random_view(example, 64, config, np.random.default_rng((1, 2, 3)))
    other = random_view(example, 64, config, np.random.default_rng((1, 2, 4)))
    assert (first[0] == again[0]).all()
    assert (first[0] != other[0]).any()


def test_mosaic_boxes_follow_the_pixels_of_their_tiles(config: Config) -> None:
    colors = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)], np.uint8)
    examples = []
    for label, color in enumerate(colors):
        image = np.zeros((120, 160, 3), np.uint8)
        image[40:80, 40:120] = color
        examples.append(example_of(image, np.array([[40, 40, 120, 80]], np.float32), [label]))
    seen = set()
    for seed in range(20):
        view = random_mosaic(examples, 192, config, np.random.default_rng(seed))
        assert view.pixels.shape == (192, 192, 3)
        for box, label in zip(view.objects.boxes_xyxy, view.objects.labels, strict=True):
            rows, columns = np.nonzero((np.abs(view.pixels.astype(int) - colors[label]) < 80).all(2))
            drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(box, drawn, atol=2)
            seen.add(int(label))
    assert seen == {0, 1, 2, 3}


def test_mosaic_tiles_have_their_own_scale(config: Config) -> None:
    whole = example_of(np.zeros((100, 100, 3), np.uint8), np.array([[0, 0, 100, 100]], np.float32), [0])
    quarter = {"scale_range": (1.0, 1.0), "mosaic_scale_range": (0.25, 0.25), "aspect_jitter": 0.0}
    view = random_mosaic([whole] * 4, 64, config.model_copy(update=quarter), np.random.default_rng(0))
    sides = view.objects.boxes_xyxy[:, 2:] - view.objects.boxes_xyxy[:, :2]
    np.testing.assert_allclose(sides, np.full((4, 2), 16), atol=1e-4)


def test_augmentation_keeps_ignored_flags(config: Config) -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[0, 0, 6, 6], [10, 10, 100, 100]], np.float32)
    example = example_of(image, boxes, [0, 1], [False, True])
    for seed in range(20):
        random = np.random.default_rng(seed)
        for view in (random_view(example, 64, config, random), random_mosaic([example] * 4, 64, config, random)):
            assert (view.objects.is_ignored == (view.objects.labels == 1)).all()


def test_ignored_regions_are_kept_however_little_the_crop_shows(config: Config) -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    example = example_of(image, np.array([[0, 0, 100, 100]], np.float32), [0], [True])
    for seed in range(40):
        view = random_mosaic([example] * 4, 64, config, np.random.default_rng(seed))
        assert len(view.objects.boxes_xyxy) == 4


def test_keypoints_follow_the_pixels_and_swap_sides_when_flipped(config: Config) -> None:
    image = np.zeros((120, 200, 3), np.uint8)
    image[30:34, 50:54] = (255, 0, 0)  # left keypoint
    image[80:84, 150:154] = (0, 255, 0)  # right keypoint
    joints = np.array([[[52, 32, 2], [152, 82, 1], [0, 0, 0]]], np.float32)
    boxes = np.array([[40, 20, 170, 100]], np.float32)
    example = Example(image, Objects(boxes, np.array([0]), np.array([False]), joints), (1, 0, 2))
    seen = {False: 0, True: 0}
    for seed in range(60):
        view = random_view(example, 160, config, np.random.default_rng(seed))
        if len(view.objects.labels) == 0:
            continue
        places = []
        for channel in (0, 1):
            rows, columns = np.nonzero(view.pixels[:, :, channel] > 150)
            places.append((columns.mean() + 0.5, rows.mean() + 0.5, 2 - channel) if len(rows) >= 6 else (0, 0, 0))
        left, right, absent = view.objects.keypoints[0]
        if left[2] > 0 and right[2] > 0 and all(place[2] for place in places):
            is_mirrored = places[0][0] > places[1][0]
            seen[is_mirrored] += 1
            np.testing.assert_allclose([left, right], places[::-1] if is_mirrored else places, atol=1.5)
        assert absent[2] == 0
        inside = ((view.objects.keypoints[0, :, :2] >= 0) & (view.objects.keypoints[0, :, :2] < 160)).all(1)
        assert not (~inside & (view.objects.keypoints[0, :, 2] > 0)).any()
    assert min(seen.values()) >= 5


def test_unannotated_keypoints_stay_unknown(config: Config) -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    joints = np.full((1, 2, 3), (0, 0, -1), np.float32)
    boxes = np.array([[0, 0, 100, 100]], np.float32)
    example = Example(image, Objects(boxes, np.array([0]), np.array([False]), joints), (1, 0))
    for seed in range(20):
        random = np.random.default_rng(seed)
        for view in (random_view(example, 64, config, random), random_mosaic([example] * 4, 64, config, random)):
            assert (view.objects.keypoints[..., 2] == -1).all()


def test_paste_copies_objects_in_the_box_and_drops_covered_ones() -> None:
    view = example_of(
        np.zeros((100, 100, 3), np.uint8),
        np.array([[25, 25, 45, 45], [60, 60, 90, 90], [0, 20, 90, 50]], np.float32),
        [0, 1, 2],
    )
    donor_boxes = np.array([[20, 20, 50, 50], [30, 40, 40, 80], [70, 0, 90, 20]], np.float32)
    donor = example_of(np.full((100, 100, 3), 200, np.uint8), donor_boxes, [3, 4, 5])
    pasted = paste_object(view, donor, 3, np.random.default_rng(0))
    assert pasted.pixels[25:45, 25:45].min() == 200  # opaque in the box, blended in a margin of 3 pixels
    assert pasted.pixels[:17].max() == pasted.pixels[53:].max() == pasted.pixels[:, 53:].max() == 0
    # 0 is covered, two thirds of 2 stay visible, 4 is clipped, 5 is outside the box
    assert pasted.objects.labels.tolist() == [1, 2, 3, 4]
    assert pasted.objects.boxes_xyxy[-1].tolist() == [30, 40, 40, 53]
    assert view.pixels.max() == 0
    at_edge = paste_object(view, donor, 5, np.random.default_rng(0))
    assert at_edge.pixels[0, 80].min() == 200  # no blending at the image's edge
    assert paste_object(view, donor, 0, np.random.default_rng(0)) is view
    crowd = donor._replace(objects=donor.objects._replace(is_ignored=np.ones(3, np.bool_)))
    assert paste_object(view, crowd, 3, np.random.default_rng(0)) is view


def test_keypoints_covered_or_cut_off_by_a_paste_are_not_visible() -> None:
    pixels, box = np.zeros((100, 100, 3), np.uint8), np.array([[10, 10, 90, 90]], np.float32)
    joints = np.array([[[30, 30, 2], [80, 80, 2]]], np.float32)
    view = Example(pixels, Objects(box, np.array([0]), np.array([False]), joints))
    lower = joints / [2, 2, 1] * [1, 3, 1]
    donor = Example(pixels, Objects(box / 2, np.array([0]), np.array([False]), lower))
    under, over = paste_object(view, donor, 0, np.random.default_rng(0)).objects.keypoints
    assert under[:, 2].tolist() == [1, 2]
    assert over[:, 2].tolist() == [2, 0]
