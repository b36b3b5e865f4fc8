"""Compares a GPU's detections with the CPU's, and a server's throughput with the bare session's: `make check-gpu`.

Exits with 77 without a GPU, and with 1 if detections differ or the server's share of the throughput is below the bar.
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

from app.bench.bench import draw_photo
from app.inference.arrangement import time_runs
from app.settings import find_shipped_model
from model.detector import Detector
from model.gpu import Gpu, Provider, ProviderUnavailable, choose_cuda
from model.session import count_cpus
from tests.gpu.agreement import detect_each, measure_agreement
from tests.gpu.clients import measure_servers

NO_GPU = 77  # automake's exit status of a skipped test
BAR = 0.9  # least share of the bare session's images/s that the server must reach
MIN_AGREEMENT = 0.98
SIZES = (1, 2, 4, 8, 16, 32, 64)
BARE = {"cpu": ["CPUExecutionProvider"], "cuda": [choose_cuda(Gpu())]}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model file and the execution provider and options that run it."""

    path: Path
    provider: Provider
    gpu: Gpu = dataclasses.field(default_factory=Gpu)

    def flags(self) -> list[str]:
        """Returns the server's command-line flags."""
        flags = [f"--model={self.path}", f"--provider={self.provider}", f"--cuda-graphs={self.gpu.cuda_graphs}"]
        if self.provider == "tensorrt":
            flags += [f"--engine-cache={self.gpu.engine_cache}", f"--tensorrt-half={self.gpu.half}"]
        return flags


@dataclasses.dataclass
class Result:
    """What was measured of a variant; throughputs in images/s."""

    fault: str = ""  # why it could not be run
    agreement: float = 0.0  # with the CPU's detections
    bare: dict[int, float] = dataclasses.field(default_factory=dict)  # by batch size, session alone
    bound: dict[int, float] = dataclasses.field(default_factory=dict)  # by batch size, with bound memory
    served: dict[int, float] = dataclasses.field(default_factory=dict)  # by number of clients, over HTTP

    @property
    def best(self) -> float:
        """Images/s of the bare session at its best batch size, or with bound memory if that is all there is."""
        return max((self.bare or self.bound).values(), default=0.0)

    @property
    def reached(self) -> float:
        """The server's best images/s as a share of `best`."""
        return max(self.served.values(), default=0.0) / self.best if self.best else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks and measures every variant; returns the exit status."""
    parser = argparse.ArgumentParser("tests.gpu", description=__doc__)
    shipped = find_shipped_model("default-fp32")
    parser.add_argument("--model", type=Path, default=shipped, help="default: the model shipped for GPUs")
    parser.add_argument("--half", type=Path, metavar="FILE", help="the same model exported in half precision")
    parser.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="JPEGs; default: one generated image of 900 x 600"
    )
    parser.add_argument("--connections", default="64,128", help="numbers of concurrent clients, separated by commas")
    parser.add_argument(
        "--processes", type=int, default=1, help="servers that share the GPU; one is limited by its event loop"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="per number of clients")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda", help="cpu: to test this check")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parsed = parser.parse_args(arguments)
    if parsed.provider == "cuda":
        try:
            Detector(parsed.model, "cuda", 1)
        except ProviderUnavailable as error:
            print(f"no GPU: {error}", file=sys.stderr)
            return NO_GPU
    photos = [path.read_bytes() for path in sorted(parsed.photos.glob("*.jp*g"))] if parsed.photos else [draw_photo()]
    with tempfile.TemporaryDirectory() as folder:
        variants = list_variants(parsed.model, parsed.half, parsed.provider, Path(folder))
        results = {name: Result() for name in variants}
        for name, variant in variants.items():
            result = results[name]
            try:
                measure(variant, parsed.model, photos, result)
                for count in map(int, parsed.connections.split(",")):
                    result.served[count] = measure_servers(
                        variant.flags(), photos, count, parsed.processes, parsed.seconds
                    )
            except Exception as error:  # of any library: the other variants are measured nonetheless
                result.fault = f"{type(error).__name__}: {error}"
    report(results)
    if parsed.json:
        found = {name: dataclasses.asdict(each) | {"reached": each.reached} for name, each in results.items()}
        parsed.json.write_text(json.dumps({"cpus": count_cpus(), "ways": found}, indent=2) + "\n")
    needed = [each for name, each in results.items() if not (each.fault and "tensorrt" in name)]  # TensorRT is optional
    agrees = all(each.agreement >= MIN_AGREEMENT and not each.fault for each in needed)
    return 0 if agrees and max(each.reached for each in needed) >= BAR else 1


def list_variants(model: Path, half: Path | None, provider: Provider, folder: Path) -> dict[str, Variant]:
    """Returns the variants by name; `folder` caches TensorRT's engines."""
    variants = {provider: Variant(model, provider)}
    if provider == "cuda":
        variants |= {
            "cuda, graphs": Variant(model, "cuda", Gpu(cuda_graphs=True)),
            "tensorrt": Variant(model, "tensorrt", Gpu(engine_cache=folder)),
            "tensorrt, fp16": Variant(model, "tensorrt", Gpu(engine_cache=folder, half=True)),
        }
        if half:
            variants |= {
                "cuda, fp16 file": Variant(half, "cuda"),
                "cuda, fp16 file, graphs": Variant(half, "cuda", Gpu(True)),
            }
    return variants


def measure(variant: Variant, model: Path, photos: Sequence[bytes], result: Result) -> None:
    """Compares detections with the CPU's, unbatched and in padded batches, and times batches of all sizes."""
    reference, detector = Detector(model, "cpu"), Detector(variant.path, variant.provider, gpu=variant.gpu)
    canvases = [reference.prepare(photo).pixels for photo in photos[:64]]
    expected = detect_each(reference, canvases, 1)
    result.agreement = min(measure_agreement(expected, detect_each(detector, canvases, size)) for size in (1, 4, 1, 32))
    for size in SIZES:
        batch = [canvases[turn % len(canvases)] for turn in range(size)]
        result.bound[size] = size / time_runs(lambda _, batch=batch: detector.infer(batch), 1.0)
    if variant.provider in BARE and not variant.gpu.cuda_graphs:  # CUDA graphs need bound memory
        result.bare = measure_bare(ort.InferenceSession(variant.path, providers=BARE[variant.provider]), canvases)


def measure_bare(session: ort.InferenceSession, canvases: Sequence[NDArray[np.uint8]]) -> dict[int, float]:
    """Returns the session's images/s by batch size, with batches that are stacked beforehand."""
    speeds = {}
    for size in SIZES:
        batch = np.stack([canvases[turn % len(canvases)] for turn in range(size)])
        speeds[size] = size / time_runs(lambda _, batch=batch: session.run(None, {"images": batch}), 1.0)
    return speeds


def report(results: Mapping[str, Result]) -> None:
    """Prints the results as a table and lines."""
    print("| images/s | agreement with the CPU |", " | ".join(f"batch {size}" for size in SIZES), "|")
    print("|---|---:|" + "---:|" * len(SIZES))
    for name, each in results.items():
        for what, speeds in (("bare", each.bare), ("bound", each.bound)):
            if speeds:
                print(
                    f"| {name}, {what} | {each.agreement:.1%} |", " | ".join(f"{v:.0f}" for v in speeds.values()), "|"
                )
        if each.fault:
            print(f"{name}: {each.fault}")
    for name, each in results.items():
        for count, speed in each.served.items():
            print(f"{name}, {count} clients: {speed:.0f} images/s over HTTP, {speed / each.best:.0%} of the best batch")
    print(f"required: {BAR:.0%}")


if __name__ == "__main__":
    sys.exit(main())
