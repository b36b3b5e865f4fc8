"""Checks and measures a GPU, `make check-gpu`: what it finds beside the CPU, and what a server reaches of its speed.

Exits with 77 where there is no GPU, and with 1 where something is found otherwise or the server stays below the bar.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.arrangement import time_runs
from app.bench.bench import draw_photo
from app.settings import find_shipped_model
from model.detector import Detector
from model.gpu import Gpu, Provider, ProviderUnavailable, choose_cuda
from model.session import count_cpus
from tests.gpu.agreement import agree, detect_each
from tests.gpu.clients import serve

NO_GPU = 77  # as automake has it for a test that is skipped
BAR = 0.9  # of the bare session's images/s, by the server
LEAST_AGREEMENT = 0.98
SIZES = (1, 2, 4, 8, 16, 32, 64)
BARE = {"cpu": ["CPUExecutionProvider"], "cuda": [choose_cuda(Gpu())]}


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to run a model."""

    path: Path
    provider: Provider
    gpu: Gpu = dataclasses.field(default_factory=Gpu)

    def flags(self) -> list[str]:
        """Returns the server's flags for it."""
        flags = [f"--model={self.path}", f"--provider={self.provider}", f"--cuda-graphs={self.gpu.cuda_graphs}"]
        if self.provider == "tensorrt":
            flags += [f"--engine-cache={self.gpu.engine_cache}", f"--tensorrt-half={self.gpu.half}"]
        return flags


@dataclasses.dataclass
class Measured:
    """What was seen of a way; images/s by batch size, or by clients of the server."""

    fault: str = ""  # why it could not be run
    agreement: float = 0.0
    bare: dict[int, float] = dataclasses.field(default_factory=dict)
    bound: dict[int, float] = dataclasses.field(default_factory=dict)
    served: dict[int, float] = dataclasses.field(default_factory=dict)

    @property
    def best(self) -> float:
        """The bare session's images/s at its best batch; where there is no bare one, those through bound memory."""
        return max((self.bare or self.bound).values(), default=0.0)

    @property
    def reached(self) -> float:
        """What the server reaches of it."""
        return max(self.served.values(), default=0.0) / self.best if self.best else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all of it, and returns the exit status."""
    parser = argparse.ArgumentParser("tests.gpu", description=__doc__)
    shipped = find_shipped_model("default-fp32")
    parser.add_argument("--model", type=Path, default=shipped, help="default: the one shipped for GPUs")
    parser.add_argument("--half", type=Path, metavar="FILE", help="the same model exported in half precision")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="JPEGs; default: a drawn one, 900 x 600")
    parser.add_argument("--connections", default="64,128", help="clients at once, separated by commas")
    parser.add_argument(
        "--processes", type=int, default=1, help="servers that share the GPU; one is limited by its loop"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each number of clients")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda", help="cpu tries the check itself")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, for other programs")
    parsed = parser.parse_args(arguments)
    if parsed.provider == "cuda":
        try:
            Detector(parsed.model, "cuda", 1)
        except ProviderUnavailable as error:
            print(f"no GPU: {error}", file=sys.stderr)
            return NO_GPU
    photos = [path.read_bytes() for path in sorted(parsed.photos.glob("*.jp*g"))] if parsed.photos else [draw_photo()]
    with tempfile.TemporaryDirectory() as folder:
        ways = list_ways(parsed.model, parsed.half, parsed.provider, Path(folder))
        measured = {name: Measured() for name in ways}
        for name, way in ways.items():
            try:
                check(way, parsed.model, photos, measured[name])
                for count in map(int, parsed.connections.split(",")):
                    measured[name].served[count] = serve(way.flags(), photos, count, parsed.processes, parsed.seconds)
            except Exception as error:  # of whatever library it is: the other ways are measured all the same
                measured[name].fault = f"{type(error).__name__}: {error}"
    report(measured)
    if parsed.json:
        found = {name: dataclasses.asdict(each) | {"reached": each.reached} for name, each in measured.items()}
        parsed.json.write_text(json.dumps({"cpus": count_cpus(), "ways": found}, indent=2) + "\n")
    needed = [each for name, each in measured.items() if not (each.fault and "tensorrt" in name)]  # that is an option
    agrees = all(each.agreement >= LEAST_AGREEMENT and not each.fault for each in needed)
    return 0 if agrees and max(each.reached for each in needed) >= BAR else 1


def list_ways(model: Path, half: Path | None, provider: Provider, folder: Path) -> dict[str, Way]:
    """Returns the ways to run a model; `folder` keeps TensorRT's engines."""
    ways = {provider: Way(model, provider)}
    if provider == "cuda":
        ways |= {
            "cuda, graphs": Way(model, "cuda", Gpu(cuda_graphs=True)),
            "tensorrt": Way(model, "tensorrt", Gpu(engine_cache=folder)),
            "tensorrt, fp16": Way(model, "tensorrt", Gpu(engine_cache=folder, half=True)),
        }
        if half:
            ways |= {"cuda, fp16 file": Way(half, "cuda"), "cuda, fp16 file, graphs": Way(half, "cuda", Gpu(True))}
    return ways


def check(way: Way, model: Path, photos: Sequence[bytes], found: Measured) -> None:
    """Compares what is found with what the CPU finds, each photo alone and in filled-up batches; measures batches."""
    reference, detector = Detector(model, "cpu"), Detector(way.path, way.provider, gpu=way.gpu)
    canvases = [reference.prepare(photo).pixels for photo in photos[:64]]
    expected = detect_each(reference, canvases, 1)
    found.agreement = min(agree(expected, detect_each(detector, canvases, size)) for size in (1, 4, 1, 32))
    for size in SIZES:
        batch = [canvases[turn % len(canvases)] for turn in range(size)]
        found.bound[size] = size / time_runs(lambda _, batch=batch: detector.infer(batch), 1.0)
    if way.provider in BARE and not way.gpu.cuda_graphs:  # these need bound memory
        found.bare = measure_bare(ort.InferenceSession(way.path, providers=BARE[way.provider]), canvases)


def measure_bare(session: ort.InferenceSession, canvases: Sequence[NDArray[np.uint8]]) -> dict[int, float]:
    """Returns the images/s of the session alone, by batch size: its batch lies there, and nothing else is done."""
    speeds = {}
    for size in SIZES:
        batch = np.stack([canvases[turn % len(canvases)] for turn in range(size)])
        speeds[size] = size / time_runs(lambda _, batch=batch: session.run(None, {"images": batch}), 1.0)
    return speeds


def report(measured: Mapping[str, Measured]) -> None:
    """Prints the tables."""
    print("| images/s | agrees with the CPU |", " | ".join(f"batch {size}" for size in SIZES), "|")
    print("|---|---:|" + "---:|" * len(SIZES))
    for name, each in measured.items():
        for what, speeds in (("bare", each.bare), ("bound", each.bound)):
            if speeds:
                print(
                    f"| {name}, {what} | {each.agreement:.1%} |", " | ".join(f"{v:.0f}" for v in speeds.values()), "|"
                )
        if each.fault:
            print(f"{name}: {each.fault}")
    for name, each in measured.items():
        for count, speed in each.served.items():
            print(f"{name}, {count} clients: {speed:.0f} images/s over HTTP, {speed / each.best:.0%} of the best batch")
    print(f"the bar is {BAR:.0%}")


if __name__ == "__main__":
    sys.exit(main())
