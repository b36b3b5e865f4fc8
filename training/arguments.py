"""The arguments of `python -m training`."""

import argparse
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from training.charts import Point
from training.config import InvalidConfig


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; settings of a run, `--key value`, are what it does not know."""
    parser = argparse.ArgumentParser("centernet-train", description="Trains, evaluates and exports detectors.")
    version = importlib.metadata.version("centernet-service")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train CONFIG.toml [--key value ...]: any setting can be overridden")
    training.add_argument("config", type=Path)
    training.add_argument("--resume", action="store_true", help="go on where the run was stopped")
    training.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER|MODEL.onnx",
        help="export the best weights at the end, into a folder under the run's name",
    )
    training.add_argument("--dry-run", action="store_true", help="draw the first views, measure speed and memory, stop")
    benching = commands.add_parser("bench", help="bench CONFIG.toml [--key value ...]: what loader and step cost here")
    benching.add_argument("config", type=Path)
    benching.add_argument(
        "--against",
        type=_read_settings,
        action="append",
        default=[],
        metavar="KEY=VALUE[,KEY=VALUE]",
        help="measure the step with these settings as well, in turn with the first; may be given again",
    )
    benching.add_argument("--seconds", type=float, default=15.0, help="of each measurement; default: 15")
    benching.add_argument("--json", type=Path, help="write the figures there too")

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument(
        "--annotations",
        type=Path,
        help="COCO .json, VOC .txt or YOLO .yaml; default: the checkpoint's validation split",
    )
    data.add_argument("--images", type=Path, help="the folder of the photos")
    evaluation = commands.add_parser("evaluate", parents=[data], help="COCO AP of a checkpoint or an exported model")
    evaluation.add_argument("weights", type=Path, metavar="CHECKPOINT|MODEL.onnx")
    evaluation.add_argument("--json", type=Path, help="write the figures there too")
    evaluation.add_argument(
        "--report", type=Path, metavar="FOLDER|FILE.html", help="write a page about its errors there"
    )
    evaluation.add_argument(
        "--without-photos", action="store_true", help="draw boxes alone, for a page that may be passed on"
    )
    evaluation.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    evaluation.add_argument(
        "--scales", type=_read_scales, default=(1.0,), help="of the input size, merged by soft-NMS: 0.5,0.75,1,1.25,1.5"
    )
    evaluation.add_argument("--soft-nms", action="store_true", help="soft-NMS for one scale too")
    averaging = commands.add_parser("average", help="the mean of the weights of runs that began alike")
    averaging.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    averaging.add_argument("output", type=Path, metavar="OUTPUT.pt")
    comparing = commands.add_parser("compare", parents=[data], help="AP and speed of exported models side by side")
    comparing.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx")
    comparing.add_argument(
        "--point",
        type=_read_point,
        action="append",
        default=[],
        metavar="NAME,AP,AP50,MS",
        help="figures of another detector to quote beside them; may be given again",
    )
    comparing.add_argument("--chart", type=_read_chart, metavar="FILE.png|svg", help="draw AP by milliseconds there")
    comparing.add_argument("--json", type=Path, help="write the figures there too")
    exporting = commands.add_parser("export", parents=[data], help="write the ONNX file that serves")
    exporting.add_argument("checkpoint", type=Path)
    exporting.add_argument("model", type=Path, metavar="MODEL.onnx")
    exporting.add_argument(
        "--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="fp16 for GPUs, int8 for CPUs"
    )
    exporting.add_argument(
        "--max-ap50-loss", type=float, default=1.0, help="most points of AP50 that fp16 or int8 may lose; default: 1"
    )
    exporting.add_argument(
        "--train-annotations", type=Path, help="photos to calibrate int8 on; default: the checkpoint's training split"
    )
    exporting.add_argument("--train-images", type=Path, help="the folder of those photos")
    exporting.add_argument("--input-size", type=int, default=0, help="pixels; default: that of the training")
    exporting.add_argument("--report", type=Path, metavar="FILE.json", help="write AP and speed before and after there")
    importing = commands.add_parser(
        "import", help="published weights of CenterNet, as a checkpoint to evaluate and export"
    )
    importing.add_argument("weights", type=Path, metavar="PUBLISHED.pth", help="the authors' or mmdetection's file")
    importing.add_argument("output", type=Path, metavar="OUTPUT.pt")
    importing.add_argument("--name", help="of the run, as if there had been one; default: the output's")
    importing.add_argument("--input-size", type=int, default=512, help="pixels; default: 512, as published")
    inspecting = commands.add_parser("inspect", help="look a data set over; --key value as for train")
    inspecting.add_argument("annotations", type=Path, help="COCO's .json, VOC's .txt or YOLO's .yaml")
    inspecting.add_argument("images", type=Path, help="the folder of the photos")
    inspecting.add_argument("--config", type=Path, help="whose augmentation to draw; default: the settings' defaults")
    inspecting.add_argument("--output", type=Path, default=Path("runs/inspect"), help="folder to draw into")
    models = commands.add_parser("models", help="what each backbone costs")
    models.add_argument("--size", type=int, default=320, help="pixels; a multiple of 32; default: 320")
    models.add_argument("--classes", type=int, default=20, help="default: 20")
    return parser


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--batch-size 8 --name=mine` → {"batch_size": "8", "name": "mine"}; raises `InvalidConfig`."""
    overrides: dict[str, str] = {}
    waiting = iter(arguments)
    for argument in waiting:
        key, equals, value = argument.partition("=")
        if not key.startswith("--"):
            raise InvalidConfig(f"unexpected {argument!r}: settings are given as --key value")
        if not equals:
            try:
                value = next(waiting)
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
    """`NanoDet-m,27.6,46.7,9` → its figures."""
    name, ap, ap50, milliseconds = text.rsplit(",", 3)
    return Point(name, float(ap), float(ap50), float(milliseconds))


def _read_chart(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r}: a chart is a .png or an .svg")
    return path


def _read_settings(text: str) -> dict[str, str]:
    """`precision=fp32,batch-size=8` → {"precision": "fp32", "batch_size": "8"}."""
    try:
        pairs = [part.split("=", 1) for part in text.split(",")]
        return {key.strip().replace("-", "_"): value.strip() for key, value in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write settings as precision=fp32,batch_size=8") from None
