"""Detects objects in photos and videos on disk: `python -m app detect` or `centernet-detect`."""

import argparse
import collections
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np
from anyio import to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal
from numpy.typing import NDArray

from app import __version__
from app.arguments import add_filter_arguments, count, read_settings_from
from app.files.backend import Backend, open_local_backend, open_server_backend
from app.files.outputs import AnnotatedCopies, ImageResult, Write, draw, name_copy, write_csv, write_json_lines
from app.files.sources import (
    VIDEO_SUFFIXES,
    InputImage,
    Source,
    UnreadableFile,
    count_images,
    find_sources,
    read_images,
)
from app.schemas import Problem, Refused
from model.errors import UserError
from model.image import SUFFIXES, InvalidImage, quieten_decoders

try:
    from tqdm import tqdm
except ModuleNotFoundError:
    tqdm = None

Item = TypeVar("Item")
Result = TypeVar("Result")

_STDOUT = Path("-")

# refusals that every other image would get too
_FATAL_REASONS = {"invalid-parameter", "unknown-label", "unknown-model", "stopped"}
_FATAL_STATUSES = {401, 403, 404}


class OutputConflict(UserError):
    """An output would overwrite an input or another output, or its input can be read only once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Sets up logging and signals, runs the command, and returns the exit status, also after an interruption."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # unwinds the stack, which completes open files
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of standard output has exited, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 1 if an image failed or it had to stop, 2 for unusable arguments."""
    parsed = _parse(arguments)
    quieten_decoders()
    try:
        with contextlib.ExitStack() as stack:
            try:
                sources = find_sources(parsed.paths, parsed.annotated)
                _check_outputs(parsed, sources)
                portal = stack.enter_context(start_blocking_portal())
                backend = stack.enter_context(portal.wrap_async_context_manager(_open_backend(parsed)))
                writes = stack.enter_context(_open_outputs(parsed))
            except (UserError, Refused, OSError, ModuleNotFoundError) as error:  # also from the outputs, httpx
                return _report_error(error, 2)
            return _process_all(parsed, sources, portal, backend, writes)
    except Refused as error:
        return _report_error(error, 2 if error.problem.status < 500 else 1)
    except BrokenPipeError:
        raise
    except OSError as error:  # also from closing the outputs
        return _report_error(error, 1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "centernet-detect",
        description="Detects objects in photos and videos."
        " Exit status: 1 if an image failed, 2 for unusable arguments.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="photo, video, folder (searched recursively for photos, except through symbolic links), or quoted glob "
        "such as 'camera/**/*.mp4'",
    )
    inference = parser.add_argument_group(
        "inference", "In this process, with the server's settings as CENTERNET_*, or at a server."
    )
    inference.add_argument(
        "--model",
        help="ONNX file (the first of a folder), or with --url a model's name there; default: the shipped model",
    )
    inference.add_argument("--provider", help="auto, cpu or cuda; default: auto")
    inference.add_argument("--threads", help="CPU threads for inference; default: all usable CPUs")
    inference.add_argument("--url", help="run at this server instead, such as http://127.0.0.1:8000")
    inference.add_argument(
        "--api-key", default=os.environ.get("CENTERNET_API_KEY"), help="for the server; default: CENTERNET_API_KEY"
    )
    detections = add_filter_arguments(parser, "from the settings, or from the server")
    detections.add_argument("--every", type=count, default=1, metavar="N", help="process every N-th frame of a video")
    output = parser.add_argument_group("output", "Can be combined; - is standard output. Default: --jsonl -")
    output.add_argument("--jsonl", type=Path, metavar="FILE", help="one line of JSON per image")
    output.add_argument("--csv", type=Path, metavar="FILE", help="one row per object")
    output.add_argument(
        "--annotated", type=Path, metavar="FOLDER", help="copies with the boxes drawn; videos as MP4, without sound"
    )
    parsed = parser.parse_args(arguments)
    if parsed.url and (parsed.provider or parsed.threads):
        parser.error("--provider and --threads have no effect with --url: the server has its own")
    if not (parsed.jsonl or parsed.csv or parsed.annotated):
        parsed.jsonl = _STDOUT
    return parsed


def _check_outputs(parsed: argparse.Namespace, sources: Sequence[Source]) -> None:
    """Raises `OutputConflict`."""
    files = [file for file in (parsed.jsonl, parsed.csv) if file not in (None, _STDOUT)]
    for file in files:
        if file.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES:  # as in --csv *.jpg, expanded by the shell
            raise OutputConflict(f"{file} is named like an image: --jsonl and --csv take the name of a file to write")
    if parsed.jsonl == parsed.csv is not None:
        raise OutputConflict("--jsonl and --csv cannot both go to the same place")
    copies = [parsed.annotated / name_copy(source) for source in sources] if parsed.annotated else []
    for copy, times in collections.Counter(copies).items():
        if times > 1:
            raise OutputConflict(f"{copy} would be the copy of {times} files: name the folder that contains them all")
    if parsed.annotated:
        for source in sources:
            if not source.path.is_file():
                raise OutputConflict(f"{source.path} is a pipe, which can be read only once: annotate a file")
    inputs = {(status.st_dev, status.st_ino) for status in (source.path.stat() for source in sources)}
    for file in [*files, *copies]:
        if file.exists() and ((status := file.stat()).st_dev, status.st_ino) in inputs:
            raise OutputConflict(f"{file} is one of the inputs: write elsewhere")


def _open_backend(parsed: argparse.Namespace) -> contextlib.AbstractAsyncContextManager[Backend]:
    if parsed.url:
        return open_server_backend(
            parsed.url, parsed.api_key, parsed.model, parsed.threshold, parsed.limit, parsed.labels
        )
    settings = read_settings_from(parsed, "model", "provider", "threads")
    return open_local_backend(settings, parsed.threshold, parsed.limit, parsed.labels)


@contextlib.contextmanager
def _open_outputs(parsed: argparse.Namespace) -> Iterator[Sequence[Write]]:
    with contextlib.ExitStack() as stack:
        writes: list[Write] = []
        if parsed.annotated:  # first, so that a reader of the lines finds the copy on disk
            parsed.annotated.mkdir(parents=True, exist_ok=True)
            writes.append(stack.enter_context(contextlib.closing(AnnotatedCopies(parsed.annotated))).write)
        if parsed.csv:
            writes.append(write_csv(stack.enter_context(_open_stream(parsed.csv))))
        if parsed.jsonl:
            writes.append(write_json_lines(stack.enter_context(_open_stream(parsed.jsonl))))
        yield writes


def _open_stream(file: Path) -> contextlib.AbstractContextManager[TextIO]:
    if file == _STDOUT:
        return contextlib.nullcontext(sys.stdout)
    return file.open("w", encoding="utf-8", newline="")


def _process_all(
    parsed: argparse.Namespace,
    sources: Sequence[Source],
    portal: BlockingPortal,
    backend: Backend,
    writes: Sequence[Write],
) -> int:
    """Processes and writes all images; returns 0, or 1 if any had a problem."""

    async def process(image: InputImage) -> ImageResult:
        return await _process(image, backend, parsed.annotated is not None)

    status = 0
    images = read_images(sources, parsed.every)
    closing_results = contextlib.closing(map_in_order(portal, process, images, backend.in_flight))
    with _show_progress(parsed, sources) as advance, closing_results as results:
        for processed in results:
            if isinstance(processed.result, Problem):
                status = _report_error(f"{processed.image}: {processed.result.title}: {processed.result.detail}", 1)
            for write in writes:
                write(processed)
            advance()
    return status


def map_in_order(
    portal: BlockingPortal, work: Callable[[Item], Awaitable[Result]], items: Iterable[Item], in_flight: int
) -> Generator[Result, None, None]:
    """Runs `work` on up to `in_flight` items concurrently; yields the results in the order of the items."""
    pending: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(portal.start_task_soon(work, item))
            while pending and (pending[0].done() or len(pending) == in_flight):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        wait(pending)  # before the backend closes, which they use


async def _process(image: InputImage, backend: Backend, annotate: bool) -> ImageResult:
    """Processes one image; raises `Refused` if every other image would be refused too, and `ConnectionError`."""
    copy: bytes | NDArray[np.uint8] | None = None
    if annotate and isinstance(image.content, np.ndarray):
        copy = image.content  # a frame that fails still appears in the video
    try:
        if isinstance(image.content, UnreadableFile):
            raise image.content
        answer = await backend.detect(image.content)
        if annotate:
            model = backend.models.get(answer.model)
            if model is None or not (
                {found.label_id for found in answer.detections} <= {label.label_id for label in model.labels}
            ):
                raise ConnectionError(f"the server's model {answer.model} was replaced in the meantime: start again")
            copy = await to_thread.run_sync(draw, image, answer, model)
        return ImageResult(image, answer, copy)
    except Refused as refused:
        if refused.reason in _FATAL_REASONS or refused.problem.status in _FATAL_STATUSES:
            raise
        return ImageResult(image, refused.problem, copy)
    except ConnectionError:
        raise
    except (UnreadableFile, OSError, InvalidImage) as error:
        problem = Problem(type="/docs#unreadable-file", title="The file cannot be read", status=422, detail=str(error))
        return ImageResult(image, problem, copy)


@contextlib.contextmanager
def _show_progress(parsed: argparse.Namespace, sources: Sequence[Source]) -> Iterator[Callable[[], object]]:
    """Yields a function that advances the progress bar; no bar without tqdm, or if output goes to the same terminal."""
    if tqdm is None or not sys.stderr.isatty() or (_STDOUT in (parsed.jsonl, parsed.csv) and sys.stdout.isatty()):
        yield lambda: None
        return
    with tqdm(total=count_images(sources, parsed.every), unit=" images", file=sys.stderr) as bar:
        yield bar.update


def _report_error(error: object, status: int) -> int:
    """Prints an error to standard error, without breaking the progress bar; returns `status`."""
    write = print if tqdm is None else tqdm.write
    write(f"centernet-detect: {error}", file=sys.stderr)
    return status
