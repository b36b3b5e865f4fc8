"""What `python -m training train|bench|average|evaluate|compare|export|import|inspect|models` does."""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from model.detector import Detector
from model.metadata import InvalidModel
from training.arguments import build_parser, parse_overrides
from training.average import average_checkpoints
from training.bench import bench
from training.checkpoint import InvalidCheckpoint, load_checkpoint
from training.collisions import measure_crowds
from training.compare import compare
from training.config import Config, InvalidConfig, load_config, make_config
from training.datasets.dataset import Dataset, InvalidDataset
from training.datasets.load import load_dataset
from training.dry_run import dry_run
from training.environment import describe_environment
from training.evaluate import detect_with_checkpoint, detect_with_model
from training.export import ParityFailure, export
from training.files import write_json, write_text
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
from training.report import Subject, render_findings, render_report
from training.test_time import AS_SERVED, TestTime
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
    parsed, rest = build_parser().parse_known_args(arguments)
    try:
        if parsed.command in _WITH_SETTINGS:
            _WITH_SETTINGS[parsed.command](parsed, parse_overrides(rest), console)
        elif rest:
            raise InvalidConfig(f"unknown argument {rest[0]}")
        else:
            _WITHOUT_SETTINGS[parsed.command](parsed, console)
    except _FAULTS as fault:
        print(f"centernet-train: {fault}", file=sys.stderr)
        sys.exit(2)


def _train(parsed: argparse.Namespace, overrides: dict[str, str], console: Console) -> None:
    config = load_config(parsed.config, overrides)
    if parsed.export:
        _check_writable("--export", _name_model(parsed.export, config.name))
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
                _export(best, parsed.export, console)


def _bench(parsed: argparse.Namespace, overrides: dict[str, str], console: Console) -> None:
    _check_writable("--json", parsed.json)
    bench(load_config(parsed.config, overrides), parsed.against, parsed.seconds, parsed.json, console)


def _check_writable(flag: str, file: Path | None) -> None:
    """Makes the folder of what `flag` names; raises `InvalidConfig` before hours of work rather than behind them."""
    if file is None:
        return
    if file.is_dir():
        raise InvalidConfig(f"{flag}: {file} is a folder: name a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(f"{flag}: {file.parent} cannot be made: {error.strerror}") from error
    if not os.access(file.parent, os.W_OK):
        raise InvalidConfig(f"{flag}: {file.parent} cannot be written to: user {os.getuid()} has no right to")


def _export(best: Path, target: Path, console: Console) -> None:
    checkpoint = load_checkpoint(best)
    export(checkpoint, load_split(checkpoint.config, "val"), _name_model(target, checkpoint.config.name), console)


def _export_as(parsed: argparse.Namespace, console: Console) -> None:
    if parsed.report and parsed.precision == "fp32":
        raise InvalidConfig("--report compares precisions: name one with --precision fp16 or int8")
    _check_writable("MODEL.onnx", parsed.model)
    _check_writable("--report", parsed.report)
    checkpoint = load_checkpoint(parsed.checkpoint)
    dataset = _val_set(parsed, checkpoint.config)
    lowering = None
    if parsed.precision != "fp32":
        lowering = Lowering(parsed.precision, parsed.max_ap50_loss, _train_set(parsed, checkpoint.config))
    path, input_size = parsed.model, parsed.input_size
    export(checkpoint, dataset, path, console, lowering=lowering, report=parsed.report, input_size=input_size)


def _name_model(target: Path, name: str) -> Path:
    return target if target.suffix == ".onnx" else target / f"{name}.onnx"


def _evaluate(parsed: argparse.Namespace, console: Console) -> None:
    page = parsed.report and _name_page(parsed.report)
    _check_writable("--json", parsed.json)
    _check_writable("--report", page)
    path: Path = parsed.weights
    test_time = TestTime(flip=parsed.flip, scales=parsed.scales, soft_nms=parsed.soft_nms)
    if path.suffix == ".onnx":
        if test_time != AS_SERVED:
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
        found = detect_with_checkpoint(checkpoint, network, dataset, config.input_size, console, test_time)
        name, commit, device = config.name, checkpoint.git_commit, "cpu"
        rows = read_rows(path.parent)
        configuration, input_size = config.model_dump(mode="json") | {"test_time": test_time}, config.input_size
    metrics = measure(dataset, found)
    metrics.print(console)
    as_voc = measure_as_voc(dataset, found)
    console.print(f"VOC mAP: {as_voc.eleven_points:.1f} by eleven points (2007), {as_voc.area:.1f} by area (2010)")
    console.print(f"crowds: {measure_crowds(dataset, found, input_size)}", soft_wrap=True)
    if parsed.json:
        write_json(parsed.json, dataclasses.asdict(metrics))
        console.print(f"wrote {parsed.json}")
    if page:
        subject = Subject(
            name=name,
            state=f"{path}, measured",
            dataset=str(dataset.annotations_path),
            git_commit=commit,
            configuration=configuration,
            environment=describe_environment(device),
        )
        findings = render_findings(dataset, found, metrics, title="Figures", epoch=0, is_bare=parsed.without_photos)
        write_text(page, render_report(subject, rows, findings))
        console.print(f"wrote {page}")


def _name_page(target: Path) -> Path:
    return target if target.suffix == ".html" else target / "report.html"


def _average(parsed: argparse.Namespace, console: Console) -> None:
    if len(parsed.checkpoints) < 2:
        raise InvalidConfig("average: name at least two checkpoints, and then the file to write")
    average_checkpoints(parsed.checkpoints).save(parsed.output)
    console.print(f"wrote {parsed.output}, the mean of {len(parsed.checkpoints)} checkpoints; not yet measured")


def _compare(parsed: argparse.Namespace, console: Console) -> None:
    _check_writable("--chart", parsed.chart)
    _check_writable("--json", parsed.json)
    compare(parsed.models, _val_set(parsed, None), parsed.point, parsed.chart, parsed.json, console)


def _models(parsed: argparse.Namespace, console: Console) -> None:
    print_models(parsed.size, parsed.classes, console)


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


_WITH_SETTINGS = {"train": _train, "bench": _bench, "inspect": _inspect}
_WITHOUT_SETTINGS = {
    "average": _average,
    "evaluate": _evaluate,
    "compare": _compare,
    "export": _export_as,
    "import": _import,
    "models": _models,
}
