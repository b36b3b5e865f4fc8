"""The arguments of `python -m training`."""

import argparse
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from training.config import InvalidConfig
from training.report.charts import Point


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands; it leaves the settings of a run, `--key value`, unparsed."""
    parser = argparse.ArgumentParser("centernet-train", description="Trains, evaluates and exports object detectors.")
    version = importlib.metadata.version("centernet-service")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser(
        "train",
        help="train a detector; --key value overrides any setting of CONFIG.toml",
        description="Trains a detector. Every setting of CONFIG.toml is also a flag, as --batch-size 8 for batch_size;"
        " training/config.py describes them. --overfit 8 trains and validates on eight photos only, to find mistakes.",
    )
    training.add_argument("config", type=Path)
    training.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the run")
    training.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER|MODEL.onnx",
        help="export the best weights at the end; in a folder, the file is named after the run",
    )
    training.add_argument(
        "--dry-run", action="store_true", help="draw the first augmented images, measure speed and memory, then stop"
    )
    benching = commands.add_parser(
        "bench", help="measure loader and training-step throughput; --key value as for train"
    )
    benching.add_argument("config", type=Path)
    benching.add_argument(
        "--against",
        type=_read_settings,
        action="append",
        default=[],
        metavar="KEY=VALUE[,KEY=VALUE]",
        help="also measure the training step with these settings, interleaved with the first; repeatable",
    )
    benching.add_argument("--seconds", type=float, default=15.0, help="duration of each measurement; default: 15")
    benching.add_argument("--json", type=Path, help="write the results as JSON")

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument(
        "--annotations",
        type=Path,
        help="data to measure AP on, by export also to calibrate scores on: COCO .json, VOC .txt or YOLO .yaml;"
        " required for .onnx files; default for a checkpoint: its validation split",
    )
    data.add_argument("--images", type=Path, help="folder of the photos")
    evaluation = commands.add_parser(
        "evaluate", parents=[data], help="measure COCO AP of a checkpoint or an exported model"
    )
    evaluation.add_argument("weights", type=Path, metavar="CHECKPOINT|MODEL.onnx")
    evaluation.add_argument("--json", type=Path, help="write the results as JSON")
    evaluation.add_argument(
        "--report", type=Path, metavar="FOLDER|FILE.html", help="write an HTML report with an error analysis"
    )
    evaluation.add_argument(
        "--without-photos",
        action="store_true",
        help="draw boxes on grey instead of the photos, for a report that can be shared",
    )
    evaluation.add_argument("--flip", action="store_true", help="average with the predictions for the mirrored image")
    evaluation.add_argument(
        "--scales",
        type=_read_scales,
        default=(1.0,),
        help="factors of the input size, for at least 64 pixels, merged by soft-NMS, such as 0.5,0.75,1,1.25,1.5",
    )
    evaluation.add_argument("--soft-nms", action="store_true", help="apply soft-NMS for a single scale too")
    averaging = commands.add_parser("average", help="average the weights of runs that started from the same weights")
    averaging.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    averaging.add_argument("output", type=_read_checkpoint, metavar="OUTPUT.pt")
    comparing = commands.add_parser("compare", parents=[data], help="compare AP and speed of exported models")
    comparing.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx")
    comparing.add_argument(
        "--point",
        type=_read_point,
        action="append",
        default=[],
        metavar="NAME,AP,AP50,MS",
        help="published results of another detector to show for comparison; repeatable",
    )
    comparing.add_argument(
        "--chart", type=_read_chart, metavar="FILE.png|svg", help="plot AP by milliseconds per photo"
    )
    comparing.add_argument("--json", type=Path, help="write the results as JSON")
    exporting = commands.add_parser("export", parents=[data], help="export a checkpoint to ONNX for serving")
    exporting.add_argument("checkpoint", type=Path)
    exporting.add_argument("model", type=_read_model, metavar="MODEL.onnx")
    exporting.add_argument(
        "--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="fp16 for GPUs, int8 for CPUs"
    )
    exporting.add_argument(
        "--max-ap50-loss", type=float, help="maximum loss of AP50 by fp16 or int8, in points; default: 1"
    )
    exporting.add_argument(
        "--train-annotations", type=Path, help="data to calibrate int8 on; default: the checkpoint's training split"
    )
    exporting.add_argument("--train-images", type=Path, help="folder of those photos")
    exporting.add_argument("--input-size", type=int, default=0, help="pixels; default: the input size of training")
    exporting.add_argument("--report", type=Path, metavar="FILE.json", help="write AP and speed of both precisions")
    importing = commands.add_parser(
        "import", help="convert published CenterNet weights to a checkpoint to evaluate and export"
    )
    importing.add_argument("weights", type=Path, metavar="PUBLISHED.pth", help="the authors' or mmdetection's file")
    importing.add_argument("output", type=_read_checkpoint, metavar="OUTPUT.pt")
    importing.add_argument("--name", help="run name in the checkpoint; default: the output file's name")
    importing.add_argument("--input-size", type=int, default=512, help="pixels; default: 512, as published")
    inspecting = commands.add_parser("inspect", help="check and visualise a data set; --key value as for train")
    inspecting.add_argument("annotations", type=Path, help="COCO .json, VOC .txt or YOLO .yaml")
    inspecting.add_argument("images", type=Path, help="folder of the photos")
    inspecting.add_argument(
        "--config", type=Path, help="configuration whose augmentation to draw; default: the default settings"
    )
    inspecting.add_argument("--output", type=Path, default=Path("runs/inspect"), help="folder to write the images to")
    models = commands.add_parser("models", help="list parameters and multiply-accumulates of each backbone")
    models.add_argument("--size", type=int, default=320, help="input size in pixels, a multiple of 32; default: 320")
    models.add_argument("--classes", type=int, default=20, help="number of classes; default: 20")
    return parser


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--batch-size 8 --name=mine` → {"batch_size": "8", "name": "mine"}; raises `InvalidConfig`."""
    overrides: dict[str, str] = {}
    remaining = iter(arguments)
    for argument in remaining:
        key, equals, value = argument.partition("=")
        if not key.startswith("--"):
            raise InvalidConfig(f"unexpected argument {argument!r}: write settings as --key value")
        if not equals:
            try:
                value = next(remaining)
            except StopIteration:
                raise InvalidConfig(f"{key} needs a value") from None
        overrides[key[2:].replace("-", "_")] = value
    return overrides


def _read_scales(text: str) -> tuple[float, ...]:
    scales = tuple(float(part) for part in text.split(","))
    if not all(0 < scale <= 8 for scale in scales):
        raise ValueError
    return scales


def _read_point(text: str) -> Point:
    """`NanoDet-m,27.6,46.7,9` → name, AP, AP50, milliseconds."""
    name, ap, ap50, milliseconds = text.rsplit(",", 3)
    return Point(name, float(ap), float(ap50), float(milliseconds))


def _read_chart(text: str) -> Path:
    return _read_path(text, (".png", ".svg"))


def _read_model(text: str) -> Path:
    return _read_path(text, (".onnx",))


def _read_checkpoint(text: str) -> Path:
    return _read_path(text, (".pt",))


def _read_path(text: str, suffixes: tuple[str, ...]) -> Path:
    path = Path(text)
    if path.suffix not in suffixes:
        raise argparse.ArgumentTypeError(f"{text!r}: must end in {' or '.join(suffixes)}")
    return path


def _read_settings(text: str) -> dict[str, str]:
    """`precision=fp32,batch-size=8` → {"precision": "fp32", "batch_size": "8"}."""
    try:
        pairs = [part.split("=", 1) for part in text.split(",")]
        return {key.strip().replace("-", "_"): value.strip() for key, value in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write settings as precision=fp32,batch_size=8") from None
