"""The commands of `python -m training`: train, bench, average, evaluate, compare, export, import, inspect, models."""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from model.detector import Detections, Detector
from model.errors import UserError
from training.arguments import build_parser, parse_overrides
from training.bench import bench
from training.config import Config, InvalidConfig
from training.config_file import load_config, make_config
from training.datasets.dataset import Dataset, InvalidDataset
from training.datasets.load import load_dataset
from training.dry_run import dry_run
from training.environment import describe_environment
from training.evaluation.collisions import measure_crowds
from training.evaluation.compare import compare
from training.evaluation.evaluate import detect_with_checkpoint, detect_with_model
from training.evaluation.metrics import measure
from training.evaluation.test_time_augmentation import NO_AUGMENTATION, TestTimeAugmentation
from training.evaluation.voc_metrics import measure_as_voc
from training.export.export import export
from training.export.precision import PrecisionTarget
from training.files import write_json, write_text
from training.inspect import inspect_dataset
from training.log import Log
from training.models import print_models
from training.processes import join_processes
from training.record import read_rows
from training.report.charts import Row
from training.report.report import Subject, render_findings, render_report
from training.train import load_split, train
from training.weights.average import average_checkpoints
from training.weights.checkpoint import load_checkpoint
from training.weights.official_weights import import_weights


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """The detections of a checkpoint or a model, and what its report says of it."""

    dataset: Dataset
    found: list[Detections]
    name: str
    labels: tuple[str, ...]
    git_commit: str
    device: str
    configuration: Mapping[str, object]
    input_size: int  # pixels
    rows: Sequence[Row]  # of its run's metrics.jsonl


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; invalid input ends it with a one-line message and exit status 2."""
    console = Console()
    parsed, rest = build_parser().parse_known_args(arguments)
    try:
        if parsed.command in _COMMANDS_WITH_SETTINGS:
            _COMMANDS_WITH_SETTINGS[parsed.command](parsed, parse_overrides(rest), console)
        elif rest:
            raise InvalidConfig(f"unknown argument {rest[0]}")
        else:
            _COMMANDS_WITHOUT_SETTINGS[parsed.command](parsed, console)
    except UserError as error:
        print(f"centernet-train: {error}", file=sys.stderr)
        sys.exit(2)


def _train(parsed: argparse.Namespace, overrides: dict[str, str], console: Console) -> None:
    if parsed.dry_run and (parsed.resume or parsed.export):
        raise InvalidConfig("--dry-run writes no weights: give it without --resume and --export")
    config = load_config(parsed.config, overrides)
    if parsed.export:
        _check_writable("--export", _model_path(parsed.export, config.name))
    with join_processes() as processes:
        console.quiet = not processes.is_first
        if parsed.dry_run:
            dry_run(config, console, processes)
            return
        log = Log(console, config.run_folder / "log.txt") if processes.is_first else contextlib.nullcontext()
        with log:
            best = train(config, parsed.resume, console, processes)
            console.print(f"best weights: {best}")
            if parsed.export and processes.is_first:
                _export_best(best, parsed.export, console)


def _bench(parsed: argparse.Namespace, overrides: dict[str, str], console: Console) -> None:
    _check_writable("--json", parsed.json)
    bench(load_config(parsed.config, overrides), parsed.against, parsed.seconds, parsed.json, console)


def _check_writable(flag: str, file: Path | None) -> None:
    """Creates the parent folder of `flag`'s file; raises `InvalidConfig` early, before hours of work, if it cannot."""
    if file is None:
        return
    if file.is_dir():
        raise InvalidConfig(f"{flag}: {file} is a folder, but must be a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(f"{flag}: {file.parent} cannot be created: {error.strerror}") from error
    if not os.access(file.parent, os.W_OK):
        raise InvalidConfig(f"{flag}: {file.parent} is not writable by user {os.getuid()}")


def _check_new(checkpoint: Path) -> None:
    """Does `_check_writable` for a checkpoint, and raises `InvalidConfig` if it exists."""
    _check_writable("OUTPUT.pt", checkpoint)
    if checkpoint.exists():
        raise InvalidConfig(f"{checkpoint} exists: give the output file last, or remove it")


def _export_best(best: Path, target: Path, console: Console) -> None:
    checkpoint = load_checkpoint(best)
    export(checkpoint, load_split(checkpoint.config, "val"), _model_path(target, checkpoint.config.name), console)


def _export(parsed: argparse.Namespace, console: Console) -> None:
    for flag, value in (("--report", parsed.report), ("--max-ap50-loss", parsed.max_ap50_loss)):
        if value is not None and parsed.precision == "fp32":
            raise InvalidConfig(f"{flag} compares precisions: it needs --precision fp16 or int8")
    if (parsed.train_annotations or parsed.train_images) and parsed.precision != "int8":
        raise InvalidConfig("--train-annotations and --train-images calibrate int8: they need --precision int8")
    _check_writable("MODEL.onnx", parsed.model)
    _check_writable("--report", parsed.report)
    checkpoint = load_checkpoint(parsed.checkpoint)
    dataset = _val_set(parsed, checkpoint.config)
    target = None
    if parsed.precision != "fp32":
        train_set = _train_set(parsed, checkpoint.config) if parsed.precision == "int8" else None
        max_ap50_loss = 1.0 if parsed.max_ap50_loss is None else parsed.max_ap50_loss
        target = PrecisionTarget(parsed.precision, max_ap50_loss, train_set)
    path, input_size = parsed.model, parsed.input_size
    export(checkpoint, dataset, path, console, target=target, report=parsed.report, input_size=input_size)


def _model_path(target: Path, name: str) -> Path:
    return target if target.suffix == ".onnx" else target / f"{name}.onnx"


def _evaluate(parsed: argparse.Namespace, console: Console) -> None:
    if parsed.without_photos and not parsed.report:
        raise InvalidConfig("--without-photos changes the report: it needs --report")
    page = parsed.report and _report_path(parsed.report)
    _check_writable("--json", parsed.json)
    _check_writable("--report", page)
    evaluate = _evaluate_model if parsed.weights.suffix == ".onnx" else _evaluate_checkpoint
    result = evaluate(parsed, console)
    dataset, found = result.dataset, result.found
    metrics = measure(dataset, found)
    metrics.print(console)
    metrics.print_undetected(result.name, result.labels, console)
    as_voc = measure_as_voc(dataset, found)
    console.print(f"VOC mAP: {as_voc.eleven_points:.1f} by 11 points (2007), {as_voc.area:.1f} by area (2010)")
    console.print(f"crowds: {measure_crowds(dataset, found, result.input_size)}", soft_wrap=True)
    if parsed.json:
        write_json(parsed.json, dataclasses.asdict(metrics))
        console.print(f"wrote {parsed.json}")
    if page:
        subject = Subject(
            name=result.name,
            state=f"evaluation of {parsed.weights}",
            dataset=str(dataset.annotations_path),
            git_commit=result.git_commit,
            configuration=result.configuration,
            environment=describe_environment(result.device),
        )
        findings = render_findings(dataset, found, metrics, title="Metrics", epoch=0, boxes_only=parsed.without_photos)
        write_text(page, render_report(subject, result.rows, findings))
        console.print(f"wrote {page}")


def _evaluate_model(parsed: argparse.Namespace, console: Console) -> _Evaluation:
    if _test_time(parsed) != NO_AUGMENTATION:
        raise InvalidConfig(
            "--flip, --scales and --soft-nms need a checkpoint: an ONNX model is evaluated as it is served"
        )
    detector = Detector(parsed.weights)
    metadata, dataset = detector.metadata, _val_set(parsed, None)
    return _Evaluation(
        dataset=dataset,
        found=detect_with_model(detector, dataset, console),
        name=metadata.name,
        labels=metadata.labels,
        git_commit=metadata.git_commit,
        device=detector.provider,
        configuration=dataclasses.asdict(metadata),
        input_size=metadata.input_height,
        rows=(),
    )


def _evaluate_checkpoint(parsed: argparse.Namespace, console: Console) -> _Evaluation:
    tta, checkpoint = _test_time(parsed), load_checkpoint(parsed.weights)
    config = checkpoint.config
    dataset, network = _val_set(parsed, config), checkpoint.build_network()
    return _Evaluation(
        dataset=dataset,
        found=detect_with_checkpoint(checkpoint, network, dataset, config.input_size, console, tta),
        name=config.name,
        labels=checkpoint.labels,
        git_commit=checkpoint.git_commit,
        device="cpu",
        configuration=config.model_dump(mode="json") | {"test_time": tta},
        input_size=config.input_size,
        rows=read_rows(parsed.weights.parent),
    )


def _test_time(parsed: argparse.Namespace) -> TestTimeAugmentation:
    return TestTimeAugmentation(flip=parsed.flip, scales=parsed.scales, soft_nms=parsed.soft_nms)


def _report_path(target: Path) -> Path:
    return target if target.suffix == ".html" else target / "report.html"


def _average(parsed: argparse.Namespace, console: Console) -> None:
    if len(parsed.checkpoints) < 2:
        raise InvalidConfig("average: needs at least two checkpoints, then the output file")
    _check_new(parsed.output)
    average_checkpoints(parsed.checkpoints).save(parsed.output)
    console.print(f"wrote {parsed.output}, the average of {len(parsed.checkpoints)} checkpoints; not evaluated yet")


def _compare(parsed: argparse.Namespace, console: Console) -> None:
    _check_writable("--chart", parsed.chart)
    _check_writable("--json", parsed.json)
    compare(parsed.models, _val_set(parsed, None), parsed.point, parsed.chart, parsed.json, console)


def _models(parsed: argparse.Namespace, console: Console) -> None:
    print_models(parsed.size, parsed.classes, console)


def _import(parsed: argparse.Namespace, console: Console) -> None:
    _check_new(parsed.output)
    checkpoint, official = import_weights(parsed.weights, parsed.name or parsed.output.stem, parsed.input_size)
    checkpoint.save(parsed.output)
    config = checkpoint.config
    keypoints = f" with {len(checkpoint.skeleton.joints)} keypoints" if checkpoint.skeleton.joints else ""
    console.print(
        f"{config.backbone} with neck {config.neck}, by {official.publisher}:"
        f" {len(checkpoint.labels)} classes{keypoints} of {config.dataset}"
    )
    console.print(f"wrote {parsed.output}, {parsed.output.stat().st_size / 1e6:.1f} MB")


def _inspect(parsed: argparse.Namespace, overrides: dict[str, str], console: Console) -> None:
    if parsed.config:
        config = load_config(parsed.config, overrides)
    else:
        settings = {"name": "inspect", "data_root": ".", "dataset": "", "epochs": "1"} | overrides
        config = make_config(settings, flags=overrides)
    faults: list[str] = []
    dataset = load_dataset(parsed.annotations, parsed.images, faults.append)
    inspect_dataset(dataset, faults, config, parsed.output, console)
    if faults:
        raise InvalidDataset(f"{parsed.annotations}: {len(faults)} faults: fix them, training stops at the first")


def _val_set(parsed: argparse.Namespace, config: Config | None) -> Dataset:
    """Loads the data set in the arguments, by default the checkpoint's validation split."""
    flags = "--annotations FILE and --images FOLDER"
    return _load_set(parsed.annotations, parsed.images, flags, config, "val")


def _train_set(parsed: argparse.Namespace, config: Config) -> Dataset:
    """Loads the training set in the arguments, by default the checkpoint's training split."""
    flags = "--train-annotations FILE and --train-images FOLDER"
    return _load_set(parsed.train_annotations, parsed.train_images, flags, config, "train")


def _load_set(
    annotations: Path | None, images: Path | None, flags: str, config: Config | None, split: Literal["train", "val"]
) -> Dataset:
    if annotations and images:
        return load_dataset(annotations, images)
    if config is None or annotations or images:
        raise InvalidConfig(f"the data set needs both {flags}")
    return load_split(config, split)


_COMMANDS_WITH_SETTINGS = {"train": _train, "bench": _bench, "inspect": _inspect}
_COMMANDS_WITHOUT_SETTINGS = {
    "average": _average,
    "evaluate": _evaluate,
    "compare": _compare,
    "export": _export,
    "import": _import,
    "models": _models,
}
