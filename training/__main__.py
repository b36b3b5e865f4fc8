"""`python -m training train|bench|average|evaluate|compare|export|import|inspect|models`."""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from model.detector import Detector
from model.metadata import InvalidModel
from training.average import average_checkpoints
from training.bench import bench
from training.charts import Point
from training.checkpoint import InvalidCheckpoint, load_checkpoint
from training.collisions import measure_crowds
from training.compare import compare
from training.config import Config, InvalidConfig, load_config, make_config
from training.datasets.dataset import Dataset, InvalidDataset
from training.datasets.load import load_dataset
from training.dry_run import dry_run
from training.environment import describe_environment
from training.evaluate import TestTime, detect_with_model, detect_with_network, print_metrics, write_metrics
from training.export import ParityFailure, export
from training.inspect import inspect_dataset
from training.learner import NonFiniteLoss
from training.log import Log
from training.metrics import measure
from training.models import print_models
from training.official_weights import import_weights
from training.precision import Lowering, PrecisionLoss
from training.pretrained import InvalidWeights
from training.processes import join_processes
from training.record import read_rows
from training.report import Subject, render_findings, render_report, replace_text
from training.train import load_split, train
from training.voc_metrics import measure_as_voc

_FAULTS = (
    InvalidConfig,
    InvalidDataset,
    InvalidWeights,
    InvalidCheckpoint,
    InvalidModel,
    ParityFailure,
    PrecisionLoss,
    NonFiniteLoss,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; a fault of the input ends it with one line and exit status 2."""
    console = Console()
    parsed, rest = _parser().parse_known_args(arguments)
    try:
        if parsed.command == "train":
            _train(parsed, parse_overrides(rest))
            return
        if parsed.command == "bench":
            config = load_config(parsed.config, parse_overrides(rest))
            bench(config, parsed.against, parsed.seconds, parsed.json, console)
            return
        if parsed.command == "inspect":
            _inspect(parsed, parse_overrides(rest), console)
            return
        if rest:
            raise InvalidConfig(f"unknown argument {rest[0]}")
        if parsed.command == "evaluate":
            _evaluate(parsed, console)
        elif parsed.command == "average":
            _average(parsed, console)
        elif parsed.command == "compare":
            dataset = _val_set(parsed, None)
            compare(parsed.models, dataset, parsed.point, parsed.chart, parsed.json, console)
        elif parsed.command == "models":
            print_models(parsed.size, parsed.classes, console)
        elif parsed.command == "import":
            _import(parsed, console)
        else:
            _export_as(parsed, console)
    except _FAULTS as fault:
        print(f"centernet-train: {fault}", file=sys.stderr)
        sys.exit(2)


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


def _train(parsed: argparse.Namespace, overrides: dict[str, str]) -> None:
    config = load_config(parsed.config, overrides)
    if parsed.export:
        _check_writable(_name_model(parsed.export, config.name).parent)
    with join_processes() as processes:
        console = Console(quiet=not processes.is_first)
        if parsed.dry_run:
            dry_run(config, console, processes)
            return
        log = Log(console, config.run_folder / "log.txt") if processes.is_first else contextlib.nullcontext()
        with log:
            best = train(config, parsed.resume, console, processes)
            console.print(f"best weights: {best}")
            if parsed.export and processes.is_first:
                _export(best, parsed.export, console)


def _check_writable(folder: Path) -> None:
    """Raises `InvalidConfig` before hours of training rather than behind them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(f"--export: {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise InvalidConfig(f"--export: {folder} cannot be written to: user {os.getuid()} has no right to")


def _export(best: Path, target: Path, console: Console) -> None:
    checkpoint = load_checkpoint(best)
    export(checkpoint, load_split(checkpoint.config, "val"), _name_model(target, checkpoint.config.name), console)


def _export_as(parsed: argparse.Namespace, console: Console) -> None:
    if parsed.report and parsed.precision == "fp32":
        raise InvalidConfig("--report compares precisions: name one with --precision fp16 or int8")
    checkpoint = load_checkpoint(parsed.checkpoint)
    dataset = _val_set(parsed, checkpoint.config)
    lowering = None
    if parsed.precision != "fp32":
        lowering = Lowering(parsed.precision, parsed.max_ap50_loss, _train_set(parsed, checkpoint.config))
    export(checkpoint, dataset, parsed.model, console, lowering, parsed.report, parsed.input_size)


def _name_model(target: Path, name: str) -> Path:
    return target if target.suffix == ".onnx" else target / f"{name}.onnx"


def _evaluate(parsed: argparse.Namespace, console: Console) -> None:
    path: Path = parsed.weights
    test_time = TestTime(parsed.flip, parsed.scales, parsed.soft_nms)
    if path.suffix == ".onnx":
        if test_time != TestTime():
            raise InvalidConfig("--flip, --scales and --soft-nms are for checkpoints: a model is measured as it serves")
        detector = Detector(path)
        dataset = _val_set(parsed, None)
        found = detect_with_model(detector, dataset, console)
        name, commit, device = detector.metadata.name, detector.metadata.git_commit, detector.provider
        rows = []
        configuration, input_size = dataclasses.asdict(detector.metadata), detector.metadata.input_height
    else:
        checkpoint = load_checkpoint(path)
        config = checkpoint.config
        dataset = _val_set(parsed, config)
        network = checkpoint.build_network()
        stride = network.backbone.coarsest_stride
        found = detect_with_network(network, dataset, config.input_size, config.workers, console, test_time, stride)
        name, commit, device = config.name, checkpoint.git_commit, "cpu"
        rows = read_rows(path.parent)
        configuration, input_size = config.model_dump(mode="json") | {"test_time": test_time}, config.input_size
    metrics = measure(dataset, found)
    print_metrics(metrics, console)
    as_voc = measure_as_voc(dataset, found)
    console.print(f"VOC mAP: {as_voc.eleven_points:.1f} by eleven points (2007), {as_voc.area:.1f} by area (2010)")
    console.print(f"crowds: {measure_crowds(dataset, found, input_size)}", soft_wrap=True)
    if parsed.json:
        write_metrics(metrics, parsed.json)
        console.print(f"wrote {parsed.json}")
    if parsed.report:
        page = parsed.report if parsed.report.suffix == ".html" else parsed.report / "report.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        data, environment = str(dataset.annotations_path), describe_environment(device)
        subject = Subject(name, f"{path}, measured", data, commit, configuration, environment)
        findings = render_findings(dataset, found, metrics, "Figures", 0, parsed.without_photos)
        replace_text(page, render_report(subject, rows, findings))
        console.print(f"wrote {page}")


def _average(parsed: argparse.Namespace, console: Console) -> None:
    if len(parsed.checkpoints) < 2:
        raise InvalidConfig("average: name at least two checkpoints, and then the file to write")
    average_checkpoints(parsed.checkpoints).save(parsed.output)
    console.print(f"wrote {parsed.output}, the mean of {len(parsed.checkpoints)} checkpoints; not yet measured")


def _import(parsed: argparse.Namespace, console: Console) -> None:
    checkpoint, official = import_weights(parsed.weights, parsed.name or parsed.output.stem, parsed.input_size)
    checkpoint.save(parsed.output)
    config = checkpoint.config
    joints = f" with {len(checkpoint.skeleton.joints)} joints" if checkpoint.skeleton.joints else ""
    console.print(
        f"{config.backbone} with neck {config.neck}, by {official.publisher}: {len(checkpoint.labels)} classes{joints}"
        f" of {config.dataset}"
    )
    console.print(f"wrote {parsed.output}, {parsed.output.stat().st_size / 1e6:.1f} MB")


def _inspect(parsed: argparse.Namespace, overrides: dict[str, str], console: Console) -> None:
    if parsed.config:
        config = load_config(parsed.config, overrides)
    else:
        config = make_config({"name": "inspect", "data_root": ".", "dataset": "", "epochs": "1"} | overrides)
    faults: list[str] = []
    dataset = load_dataset(parsed.annotations, parsed.images, faults.append)
    inspect_dataset(dataset, faults, config, parsed.output, console)
    if faults:
        raise InvalidDataset(f"{parsed.annotations}: {len(faults)} faults: mend them, training stops at the first")


def _val_set(parsed: argparse.Namespace, config: Config | None) -> Dataset:
    """What the arguments name, or else what the checkpoint was validated on."""
    how = "name the data with both --annotations FILE and --images FOLDER"
    return _find_set(parsed.annotations, parsed.images, how, config, "val")


def _train_set(parsed: argparse.Namespace, config: Config) -> Dataset:
    """What the arguments name, or else what the checkpoint was trained on."""
    how = "name the training photos with both --train-annotations FILE and --train-images FOLDER"
    return _find_set(parsed.train_annotations, parsed.train_images, how, config, "train")


def _find_set(
    annotations: Path | None, images: Path | None, how: str, config: Config | None, split: Literal["train", "val"]
) -> Dataset:
    if annotations and images:
        return load_dataset(annotations, images)
    if config is None or annotations or images:
        raise InvalidConfig(how)
    return load_split(config, split)


def _parser() -> argparse.ArgumentParser:
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


if __name__ == "__main__":
    main()
