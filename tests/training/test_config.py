from pathlib import Path

import pytest

from tests.training.configs import small_config
from training.arguments import parse_overrides
from training.config import InvalidConfig
from training.config_file import load_config

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def test_flags_override_the_file() -> None:
    flags = parse_overrides(["--batch-size", "4", "--scale_range=0.5,2", "--data-root", "elsewhere"])
    config = load_config(CONFIGS / "tiny.toml", flags)
    assert (config.batch_size, config.scale_range, config.data_root) == (4, (0.5, 2.0), Path("elsewhere"))


@pytest.mark.parametrize("name", ["photos", "photos-paper", "coco-dla34", "coco-hourglass104", "people"])
def test_every_setting_can_be_a_flag(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.toml", {"stride": "2"} if name == "photos" else {})
    flags = []
    for key, value in config.model_dump(mode="json", exclude_none=True).items():
        flags.append(f"--{key}={','.join(map(str, value)) if isinstance(value, list) else value}")
    assert load_config(CONFIGS / "tiny.toml", parse_overrides(flags)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"batch_sise": "4"}, r"^--batch-sise is not a setting: did you mean --batch-size\?"),
        ({"zzz": "4"}, "^--zzz is not a setting$"),
        ({"batch_size": "four"}, "^--batch-size"),
        ({"input_size": "300"}, "input-size.*multiple of 32"),
        ({"backbone": "vgg"}, "backbone.*efficientnet_lite0, .*resnet18"),
        ({"neck": "giraffe"}, "neck.*top_down, transposed, deformable"),
        ({"backbone": "hourglass104", "input_size": "256"}, "neck: .*does not fit hourglass104: choose none"),
        ({"neck": "none"}, "neck: .*does not fit .*choose top_down or transposed"),
        ({"backbone": "hourglass104", "neck": "none", "input_size": "320"}, "input-size.*multiple of 128"),
        ({"mean": "1,2,3"}, "std: .*both or neither"),
        ({"mean": "1,2,3", "std": "1,0,1"}, "std: .*positive"),
        ({"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}, r"std: .*pixels in 0\.\.255"),
        ({"mean": "0.5,0.5,0.5", "std": "58,57,57"}, r"std: .*pixels in 0\.\.255"),
        ({"scale_range": "wide"}, "scale-range"),
        ({"scale_range": "2,1"}, "scale-range.*the smaller first"),
        ({"device": "tpu"}, "device"),
        ({"name": "a b"}, "^--name: String should match pattern"),
        (
            {"accumulate": "3"},
            r"^\S+tiny\.toml: batch_size 16 cannot be split into 3 equal parts: make it a multiple of accumulate",
        ),
        ({"freeze_backbone_epochs": "2", "pretrained": ""}, "would freeze random weights: set pretrained"),
        (
            {"freeze_backbone_epochs": "10", "pretrained": "x.pth"},
            "leaves no epoch of 10 in which the backbone is trained",
        ),
        ({"frozen_stages": "2", "pretrained": ""}, "would freeze random weights: set pretrained"),
        ({"freeze_statistics": "true", "pretrained": ""}, "would freeze random weights: set pretrained"),
        ({"input_size": "32"}, "input-size.*greater than or equal to 64"),
        ({"frozen_stages": "6"}, "frozen-stages: efficientnet_lite0 has only 5 stages"),
        ({"patience": "-1"}, "patience.*greater than or equal to 0"),
        ({"seed": "-1"}, "seed.*greater than or equal to 0"),
    ],
)
def test_invalid_setting_is_named(override: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        load_config(CONFIGS / "tiny.toml", override)


def test_hourglass_image_sizes_are_multiples_of_128(shapes: Path, tmp_path: Path) -> None:
    settings = {"backbone": "hourglass104", "neck": "none", "epochs": 10}
    config = small_config(shapes, tmp_path, **settings, input_size=512, first_train_size=256)
    sizes = [config.image_size(epoch) for epoch in range(10)]
    assert sizes[0] == 256 and sizes[-1] == 512
    assert all(size % 128 == 0 for size in sizes)


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--epochs"], "--epochs needs a value"), (["more"], "unexpected argument 'more'")]
)
def test_malformed_argument_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        parse_overrides(arguments)


def test_missing_or_invalid_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="no such configuration file"):
        load_config(tmp_path / "none.toml", {})
    (tmp_path / "bad.toml").write_text("epochs = ")
    with pytest.raises(InvalidConfig, match="not valid TOML"):
        load_config(tmp_path / "bad.toml", {})
    (tmp_path / "latin.toml").write_text('dataset = "Tür"', "latin-1")
    with pytest.raises(InvalidConfig, match="not valid TOML in UTF-8"):
        load_config(tmp_path / "latin.toml", {})
    with pytest.raises(InvalidConfig, match="Is a directory"):
        load_config(tmp_path, {})
    (tmp_path / "windows.toml").write_text((CONFIGS / "tiny.toml").read_text(), "utf-8-sig")
    assert load_config(tmp_path / "windows.toml", {}) == load_config(CONFIGS / "tiny.toml", {})


@pytest.mark.parametrize("settings", [{"mean": "0,0,0", "std": "255,255,255"}, {"mean": "104,117,123", "std": "1,1,1"}])
def test_other_normalisations_are_accepted(settings: dict[str, str]) -> None:
    load_config(CONFIGS / "tiny.toml", settings)


def test_image_size_grows_to_the_final_size(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path, epochs=10, first_train_size=64, train_size=128)
    sizes = [config.image_size(epoch) for epoch in range(10)]
    assert sizes[0] == 64 and sizes[8:] == [128, 128]
    assert sizes == sorted(sizes) and all(size % 32 == 0 for size in sizes)
    assert small_config(shapes, tmp_path).image_size(0) == 64


def test_missing_setting_is_named_with_its_flag(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text('name = "short"\ndataset = "mine"\nepochs = 3\n')
    with pytest.raises(InvalidConfig, match=r"short\.toml: data_root is required: .* or give --data-root"):
        load_config(path, {})


def test_empty_flag_removes_the_learning_rate_drops() -> None:
    config = load_config(CONFIGS / "photos-paper.toml", parse_overrides(["--learning-rate-drops=", "--epochs", "3"]))
    assert config.learning_rate_drops == ()


def test_learning_rate_is_scaled_only_if_its_batch_size_is_set(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path, batch_size=16, learning_rate=1e-3)
    assert config.scaled_learning_rate == 1e-3
    assert config.model_copy(update={"learning_rate_batch_size": 64}).scaled_learning_rate == pytest.approx(2.5e-4)
