"""Batch inference over very many photos with Ray Data, on one machine or a cluster: `python -m app bulk`."""

import argparse
import math
import os
import sys
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy

from app.arguments import add_filter_arguments, count, read_settings_from
from app.cluster.bulk_steps import FindObjects, ReadPhotos, describe_origin
from app.cluster.storage import Storage, open_storage, read_column
from app.files.sources import NoImages
from app.pipeline import Filter, build_filter
from app.settings import Settings
from model.detector import Detector
from model.errors import UserError
from model.image import SUFFIXES

_TARGET_TASKS = 1000  # this many, or a few times more, balance the load well
_MIN_PHOTOS_PER_TASK, _MAX_PHOTOS_PER_TASK = 8, 256  # 256 take 80 MB of pixels at 320 x 320
_DEFAULT_MAX_BATCH = 8


class TooManyActors(UserError):
    """The cluster has too few CPUs or GPUs for the requested actors."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 1 if a photo has a problem, 2 for unusable arguments."""
    parsed = _parse(arguments)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports, unless enabled
    try:
        settings = read_settings_from(parsed, "model", "provider")
        model = settings.find_models()[0].absolute()
        detector = Detector(model, "cpu", 1)
        wanted = build_filter(settings, detector.metadata, parsed.threshold, parsed.limit, parsed.labels)
        origin = describe_origin(detector.metadata, wanted)
        photos, found = open_storage(parsed.photos), open_storage(parsed.found)
        names, missing = _find_missing(photos, found, origin)
        print(f"{names} photos, {names - len(missing)} of them done", file=sys.stderr)
        if missing:
            _connect()
            _find_objects(parsed, settings, detector, wanted, photos, found, missing)
        problems = read_column(found, "problem", origin)
    except (UserError, OSError) as error:
        print(f"centernet-bulk: {error}", file=sys.stderr)
        return 2
    failed = len(problems) - problems.null_count
    print(f"{len(problems)} photos in {parsed.found}, {failed} of them with a problem", file=sys.stderr)
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m app bulk",
        description="Detects objects in very many photos and writes Parquet files with one row per photo. A restarted"
        " run processes only the photos that have no row yet. The server's settings apply as CENTERNET_*. RAY_ADDRESS"
        " names a Ray cluster; without it Ray runs on this machine. Exit status: 1 if a photo has a problem, 2 for"
        " unusable arguments.",
    )
    parser.add_argument("photos", help="folder that is searched recursively for photos, or a URI: s3://bucket/photos")
    parser.add_argument("found", help="folder for the Parquet files, or a URI")
    inference = parser.add_argument_group("inference")
    inference.add_argument("--model", help="ONNX file, at the same path on each machine; default: the shipped model")
    inference.add_argument("--provider", help="auto, cpu or cuda; default: auto")
    inference.add_argument("--actors", type=count, help="number of actors, each with a session; default: all that fit")
    inference.add_argument("--cpus", type=count, default=1, help="CPUs and threads per actor; default: 1")
    inference.add_argument("--gpus", type=float, default=0, help="GPUs per actor, such as 0.5; default: 0")
    inference.add_argument(
        "--photos-per-file",
        type=count,
        default=1000,
        help="minimum rows per file, which is also what each task may lose when killed; default: 1000",
    )
    add_filter_arguments(parser, "from the settings")
    return parser.parse_args(arguments)


def _find_missing(photos: Storage, found: Storage, origin: str) -> tuple[int, pa.Array]:
    """Returns the number of photos, and the names of those without a row; raises `NoImages`."""
    names = pa.array([photos.prefix + file.path for file in photos.list_files(SUFFIXES)], pa.string())
    if not len(names):
        raise NoImages(f"{photos.prefix}{photos.path}: no photos in this folder")
    done = read_column(found, "file", origin)
    return len(names), names.filter(pc.invert(pc.is_in(names, done)))


def _connect() -> None:
    if os.environ.get("RAY_ADDRESS"):
        ray.init()
    else:
        ray.init(address="local", include_dashboard=False)


def _find_objects(
    parsed: argparse.Namespace,
    settings: Settings,
    detector: Detector,
    wanted: Filter,
    photos: Storage,
    found: Storage,
    missing: pa.Array,
) -> None:
    """Detects objects in the photos named by `missing` and writes their rows; raises `TooManyActors`."""
    size = min(_MAX_PHOTOS_PER_TASK, max(_MIN_PHOTOS_PER_TASK, len(missing) // _TARGET_TASKS))
    parts = [pa.table({"file": missing[at : at + size]}) for at in range(0, len(missing), size)]
    shapes = detector.shapes[-1:] if parsed.gpus else detector.shapes  # as in `Detector`
    reader = ReadPhotos(photos.filesystem, photos.prefix, shapes, settings.max_image_bytes, settings.max_pixels)
    (
        ray.data.from_arrow(parts)
        # in separate tasks if there are GPUs; otherwise Ray fuses it into the actors, whose resources it must equal
        .map_batches(reader, batch_format="numpy", num_cpus=1 if parsed.gpus else parsed.cpus)
        .map_batches(
            FindObjects,
            fn_constructor_args=(detector.path, settings.provider, parsed.cpus, wanted, shapes),
            batch_format="numpy",
            batch_size=settings.max_batch or _DEFAULT_MAX_BATCH,
            compute=ActorPoolStrategy(size=_count_actors(parsed)),
            num_cpus=parsed.cpus,
            num_gpus=parsed.gpus,
        )
        .write_parquet(
            found.path,
            filesystem=found.filesystem,
            min_rows_per_file=parsed.photos_per_file,
            ray_remote_args={"num_cpus": 0},  # the actors may occupy all CPUs
        )
    )


def _count_actors(parsed: argparse.Namespace) -> int:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fitting = (resources.get("CPU", 0) - bool(parsed.gpus)) / parsed.cpus  # with GPUs, tasks need a CPU to read photos
    if parsed.gpus:
        fitting = min(fitting, resources.get("GPU", 0) / parsed.gpus)
    if (parsed.actors or 1) > fitting:
        raise TooManyActors(
            f"there is room for {math.floor(fitting)} actors with {parsed.cpus} CPUs and {parsed.gpus:g} GPUs each:"
            " lower --actors, --cpus or --gpus"
        )
    actors: int = parsed.actors or math.floor(fitting)
    return actors
