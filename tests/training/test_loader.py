import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.letterbox import place
from model.skeleton import Skeleton
from tests.training.configs import small_config
from training import loader
from training.config import Config
from training.datasets.dataset import Dataset, Object, Photo, make_photo
from training.datasets.load import load_dataset
from training.loader import TrainingViews, choose_workers, evaluation_batches, repeat_factors, training_batches
from training.processes import Processes


@pytest.fixture
def dataset() -> Dataset:
    """100 photos: class 0 in all, class 1 in 25, class 2 in one, and class 3 only as ignored crowds."""

    def photo(index: int) -> Photo:
        labels = [0] + [1] * (index % 4 == 0) + [2] * (index == 8)
        objects = [Object((0, 0, 1, 1), label) for label in labels]
        crowd = Object((0, 0, 1, 1), 3, is_ignored=True)
        return make_photo(index, Path(f"{index}.jpg"), 64, 64, [*objects, crowd])

    return Dataset(Path("x.json"), ("a", "b", "c", "d"), (1, 2, 3, 4), tuple(photo(i) for i in range(100)))


def test_rare_classes_are_sampled_more_often(dataset: Dataset) -> None:
    factors = repeat_factors(dataset, 0.04)
    assert factors[8] == pytest.approx(2.0)  # sqrt(0.04 / 0.01)
    assert (np.delete(factors, 8) == 1).all()
    assert repeat_factors(dataset, 1.0)[4] == pytest.approx(2.0)  # sqrt(1 / 0.25)
    assert (repeat_factors(dataset, 0.0) == 1).all()
    assert dataset.class_presence.sum(0).tolist() == [100, 25, 1, 0]


def test_epoch_has_every_photo_and_stochastic_repeats(dataset: Dataset, shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path, repeat_threshold=0.0225)  # repeat factor 1.5 for the rare photo
    counts = [np.bincount(TrainingViews(dataset, config, epoch).order, minlength=100) for epoch in range(100)]
    assert all((np.delete(count, 8) == 1).all() for count in counts)
    assert {int(count[8]) for count in counts} == {1, 2}
    assert 1.3 < np.mean([count[8] for count in counts]) < 1.7


@pytest.mark.parametrize(
    ("wanted", "device", "cpus", "processes", "workers"),
    [
        (None, "cpu", 8, 1, 0),
        (None, "cuda", 8, 1, 8),
        (None, "cuda:1", 9, 2, 4),
        (None, "cuda", 2, 4, 1),
        (None, "cuda", 128, 2, 16),  # more would fill the shared memory with batches
        (0, "cuda", 8, 1, 0),
        (3, "cpu", 8, 1, 3),
        (32, "cuda", 8, 2, 32),
    ],
)
def test_workers_default_to_a_share_of_the_cpus_on_gpus_and_to_none_on_cpu(
    wanted: int | None, device: str, cpus: int, processes: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "count_cpus", lambda: cpus)
    of_machine = Processes(world_size=2 * processes, local_world_size=processes)
    assert choose_workers(wanted, torch.device(device), of_machine) == workers


def test_resumed_epoch_has_the_remaining_batches(config: Config, train_set: Dataset) -> None:
    whole = list(training_batches(train_set, config, 1, 0, torch.device("cpu")))
    rest = list(training_batches(train_set, config, 1, 1, torch.device("cpu")))
    assert len(rest) == len(whole) - 1 >= 1
    for [(images, targets)], [(again, targets_again)] in zip(whole[1:], rest, strict=True):
        assert (images == again).all()
        assert (targets.heatmap == targets_again.heatmap).all()


@pytest.mark.parametrize("kind", ["mosaic", "copy_paste"])
def test_mosaic_and_copy_paste_end_before_the_last_epochs(kind: str, config: Config, train_set: Dataset) -> None:
    plain = config.model_copy(update={"epochs": 5, "mosaic": 0.0, "copy_paste": 0.0})
    composed = plain.model_copy(update={kind: 1.0})
    for epoch, is_composed in ((0, True), (3, True), (4, False)):
        views, singles = TrainingViews(train_set, composed, epoch), TrainingViews(train_set, plain, epoch)
        assert any((views[at][0] != singles[at][0]).any() for at in range(6)) == is_composed


def test_copy_paste_oversamples_rare_classes(config: Config, train_set: Dataset) -> None:
    rare = [photo for photo in train_set.photos if 0 in photo.labels][:1]
    others = [photo for photo in train_set.photos if 0 not in photo.labels]
    dataset = dataclasses.replace(train_set, photos=(*rare, *others))
    shares = []
    for share in (0.0, 1.0):
        settings = {"copy_paste": share, "mosaic": 0.0, "scale_range": (0.8, 1.2)}
        views = TrainingViews(dataset, config.model_copy(update=settings), 0)
        shares.append(np.mean([0 in views.view(position)[0].objects.labels for position in range(len(views))]))
    assert shares[0] < 2 / len(dataset.photos)
    assert shares[1] > 0.5 / len(dataset.labels)


def test_each_epoch_has_another_view_of_a_photo(config: Config, train_set: Dataset) -> None:
    lone = dataclasses.replace(train_set, photos=train_set.photos[:1])
    first, again, other = (TrainingViews(lone, config, epoch)[0][0] for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_targets_have_the_configured_radius_and_stride(config: Config, train_set: Dataset) -> None:
    def count_cells(**settings: object) -> tuple[int, int]:
        """Returns the cells of the heatmap and those under its Gaussians, for a photo without augmentation."""
        changed = config.model_copy(update={"overfit": 1, "input_size": 320} | settings).for_overfitting()
        heatmap = TrainingViews(train_set, changed, 0).view(0)[1].heatmap
        return heatmap.numel(), int((heatmap > 0).sum())

    cells, covered = count_cells()
    assert cells == 3 * 80 * 80
    finer = count_cells(stride=2)
    assert finer[0] == 3 * 160 * 160 and finer[1] > 2 * covered
    assert count_cells(radius_iou=0.7)[1] < covered < count_cells(radius="published")[1]


@pytest.mark.parametrize(("width", "height"), [(300, 120), (120, 300)])
def test_overfit_view_is_the_evaluation_canvas(tmp_path: Path, width: int, height: int) -> None:
    """Uses photos that are not square, whose letterbox has padding."""
    pixels = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(tmp_path / "0.png")
    seen, cut = (20, 30, 2), (width, height, 1)  # `cut` is on the photo's edge
    objects = [Object((10, 20, 90, 110), 0, keypoints=[seen, cut]), Object((0, 0, width, height), 0, is_ignored=True)]
    photo = make_photo(0, tmp_path / "0.png", width, height, objects, joint_count=2)
    dataset = Dataset(Path("x.json"), ("a",), (1,), (photo,), Skeleton(("one", "other")))
    config = small_config(tmp_path, tmp_path, overfit=1, copy_paste=1.0, mosaic=1.0).for_overfitting()
    [canvas] = evaluation_batches(dataset, config.input_size, 1, 0, torch.device("cpu"))
    placed = place(width, height, [(64, 64)])
    for epoch in range(2):
        view, targets = TrainingViews(dataset, config, epoch).view(0)
        np.testing.assert_array_equal(view.pixels, canvas[0])
        np.testing.assert_allclose(view.objects.boxes_xyxy, placed.from_photo(photo.boxes_xyxy), atol=1e-4)
        assert view.objects.is_ignored.tolist() == [False, True]
        back = placed.points_to_photo(view.objects.keypoints[0, :, :2])
        np.testing.assert_allclose(back, [seen[:2], cut[:2]], atol=1e-3)
        assert view.objects.keypoints[0, 0, 2] == 2
        assert targets.mask.sum() == 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpeg_is_decoded_at_reduced_size(tmp_path: Path, orientation: int) -> None:
    """Uses a red square on grey in a JPEG of 800 x 640 pixels, upright or rotated by EXIF, for views of 64 pixels."""
    pixels = np.full((640, 800, 3), 128, np.uint8)
    pixels[200:400, 300:500] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels if orientation == 1 else np.rot90(pixels)).save(tmp_path / "0.jpg", exif=exif, quality=95)
    config = small_config(tmp_path, tmp_path, aspect_jitter=0.2, scale_range=(0.8, 1.5), color_jitter=0.0)
    photo = make_photo(0, tmp_path / "0.jpg", 800, 640, [Object((300, 200, 500, 400), 0)])
    views = TrainingViews(Dataset(Path("x.json"), ("square",), (1,), (photo,)), config, 0)
    assert config.max_scale == pytest.approx(1.5 * np.exp(0.1))
    example = views._read(0)
    assert example.pixels.shape == (160, 200, 3)
    assert example.objects.boxes_xyxy.tolist() == [[75, 50, 125, 100]]
    for epoch in range(8):
        views.epoch = epoch
        view, _ = views.view(0)
        rows, columns = np.nonzero((view.pixels[..., 0] > 190) & (view.pixels[..., 1] < 65))
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(view.objects.boxes_xyxy[0], seen, atol=1.5)


@pytest.fixture
def config(shapes: Path, tmp_path: Path) -> Config:
    return small_config(shapes, tmp_path, mosaic=0.5)


@pytest.fixture
def train_set(config: Config) -> Dataset:
    return load_dataset(config.data_root / config.train_annotations, config.data_root / config.train_images)
