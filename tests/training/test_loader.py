import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.configs import small_config
from training.config import Config
from training.datasets.dataset import Dataset, Object, Photo, make_photo
from training.datasets.load import load_dataset
from training.loader import TrainingViews, choose_workers, repeat_factors, training_batches


@pytest.fixture
def dataset() -> Dataset:
    """100 photos: class 0 on all, class 1 on 25, class 2 on one; class 3 on none."""

    def photo(index: int) -> Photo:
        labels = [0] + [1] * (index % 4 == 0) + [2] * (index == 8)
        objects = [Object((0, 0, 1, 1), label) for label in labels]
        crowd = Object((0, 0, 1, 1), 3, is_ignored=True)
        return make_photo(index, Path(f"{index}.jpg"), 64, 64, [*objects, crowd])

    return Dataset(Path("x.json"), ("a", "b", "c", "d"), (1, 2, 3, 4), tuple(photo(i) for i in range(100)))


def test_photos_of_rare_classes_come_oftener(dataset: Dataset) -> None:
    factors = repeat_factors(dataset, 0.04)
    assert factors[8] == pytest.approx(2.0)  # sqrt(0.04 / 0.01)
    assert (np.delete(factors, 8) == 1).all()
    assert repeat_factors(dataset, 1.0)[4] == pytest.approx(2.0)  # sqrt(1 / 0.25)
    assert (repeat_factors(dataset, 0.0) == 1).all()


def test_an_epoch_shows_every_photo_and_repeats_by_chance(dataset: Dataset, shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path, repeat_threshold=0.0225)  # the rare photo: 1.5 times an epoch
    counts = [np.bincount(TrainingViews(dataset, config, epoch).order, minlength=100) for epoch in range(100)]
    assert all((np.delete(count, 8) == 1).all() for count in counts)
    assert {int(count[8]) for count in counts} == {1, 2}
    assert 1.3 < np.mean([count[8] for count in counts]) < 1.7


@pytest.mark.parametrize(
    ("wanted", "device", "workers"), [(None, "cpu", 0), (None, "cuda:1", 2), (0, "cuda", 0), (3, "cpu", 3)]
)
def test_workers_take_no_core_from_a_step_unless_told_to(wanted: int | None, device: str, workers: int) -> None:
    assert choose_workers(wanted, torch.device(device)) == workers


def test_a_restart_sees_the_batches_that_the_run_would_have_seen(config: Config, train_set: Dataset) -> None:
    whole = list(training_batches(train_set, config, 1, 0, torch.device("cpu")))
    rest = list(training_batches(train_set, config, 1, 1, torch.device("cpu")))
    assert len(rest) == len(whole) - 1 >= 1
    for [(images, targets)], [(again, targets_again)] in zip(whole[1:], rest, strict=True):
        assert (images == again).all()
        assert (targets.heatmap == targets_again.heatmap).all()


@pytest.mark.parametrize("kind", ["mosaic", "copy_paste"])
def test_what_is_composed_ends_before_the_last_epochs(kind: str, config: Config, train_set: Dataset) -> None:
    plain = config.model_copy(update={"epochs": 5, "mosaic": 0.0, "copy_paste": 0.0})
    composed = plain.model_copy(update={kind: 1.0})
    for epoch, is_composed in ((0, True), (3, True), (4, False)):
        views, singles = TrainingViews(train_set, composed, epoch), TrainingViews(train_set, plain, epoch)
        assert any((views[at][0] != singles[at][0]).any() for at in range(6)) == is_composed


def test_a_rare_class_is_pasted_as_often_as_others(config: Config, train_set: Dataset) -> None:
    rare = [photo for photo in train_set.photos if 0 in photo.labels][:1]
    others = [photo for photo in train_set.photos if 0 not in photo.labels]
    dataset = dataclasses.replace(train_set, photos=(*rare, *others))
    shares = []
    for share in (0.0, 1.0):
        settings = {"copy_paste": share, "mosaic": 0.0, "scale_range": (0.8, 1.2)}
        views = TrainingViews(dataset, config.model_copy(update=settings), 0)
        shares.append(np.mean([0 in views.view(position)[0].labels for position in range(len(views))]))
    assert shares[0] < 2 / len(dataset.photos)
    assert shares[1] > 0.5 / len(dataset.labels)


@pytest.mark.parametrize("turn", [1, 6])
def test_a_large_photo_is_decoded_no_larger_than_its_views_need(tmp_path: Path, turn: int) -> None:
    """A red square on grey, in a JPEG of 800 x 640 pixels for views of 64, upright or turned by its EXIF."""
    pixels = np.full((640, 800, 3), 128, np.uint8)
    pixels[200:400, 300:500] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels if turn == 1 else np.rot90(pixels)).save(tmp_path / "0.jpg", exif=exif, quality=95)
    config = small_config(tmp_path, tmp_path, aspect_jitter=0.2, scale_range=(0.8, 1.5), color_jitter=0.0)
    photo = make_photo(0, tmp_path / "0.jpg", 800, 640, [Object((300, 200, 500, 400), 0)])
    views = TrainingViews(Dataset(Path("x.json"), ("square",), (1,), (photo,)), config, 0)
    assert config.largest_scale == pytest.approx(1.5 * np.exp(0.1))
    example = views._read(0)
    assert example.pixels.shape == (160, 200, 3)
    assert example.boxes_xyxy.tolist() == [[75, 50, 125, 100]]
    for epoch in range(8):
        views.epoch = epoch
        view, _ = views.view(0)
        rows, columns = np.nonzero((view.pixels[..., 0] > 190) & (view.pixels[..., 1] < 65))
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(view.boxes_xyxy[0], seen, atol=1.5)


@pytest.fixture
def config(shapes: Path, tmp_path: Path) -> Config:
    return small_config(shapes, tmp_path, mosaic=0.5)


@pytest.fixture
def train_set(config: Config) -> Dataset:
    return load_dataset(config.data_root / config.train_annotations, config.data_root / config.train_images)
