"""Finds objects in photos and videos on disk: `python -m app detect` or `centernet-detect`."""

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
from app.files.backend import Backend, ask_server, run_model
from app.files.outputs import AnnotatedCopies, ImageResult, Write, draw, name_copy, write_json_lines, write_csv
from app.files.sources import (
    VIDEO_SUFFIXES,
    NoPictures,
    Picture,
    Source,
    UnreadableFile,
    count_pictures,
    find_sources,
    read_pictures,
)
from app.pipeline import UnknownLabel
from app.schemas import Problem, Refused
from app.settings import InvalidSettings
from model.gpu import ProviderUnavailable
from model.image import SUFFIXES, InvalidImage, quieten_decoders
from model.metadata import InvalidModel

try:
    from tqdm import tqdm
except ModuleNotFoundError:
    tqdm = None

Item = TypeVar("Item")
Result = TypeVar("Result")

_STDOUT = Path("-")

# refusals that would befall every picture alike
_REASONS_OF_ALL = {"invalid-parameter", "unknown-label", "unknown-model", "stopped"}
_STATUSES_OF_ALL = {401, 403, 404}


class Overwriting(Exception):
    """An output would replace a picture, or another output."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Readies the process, runs the command, and returns its exit status, also of one that was stopped."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # files are completed on the way out
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the lines has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if a picture failed or the rest could not be done, 2 for arguments of no use."""
    parsed = _parse(arguments)
    quieten_decoders()
    with contextlib.ExitStack() as stack:
        try:
            sources = find_sources(parsed.paths, parsed.annotated)
            _check_outputs(parsed, sources)
            portal = stack.enter_context(start_blocking_portal())
            backend = stack.enter_context(portal.wrap_async_context_manager(_open_backend(parsed)))
            writes = stack.enter_context(_open_outputs(parsed))
        except (NoPictures, Overwriting, InvalidSettings, InvalidModel, ProviderUnavailable, UnknownLabel) as error:
            return _report(error, 2)
        except (Refused, OSError, ModuleNotFoundError) as error:  # of the server, of the outputs, of httpx
            return _report(error, 2)
        try:
            return _process_all(parsed, sources, portal, backend, writes)
        except Refused as error:
            return _report(error, 2 if error.problem.status < 500 else 1)
        except BrokenPipeError:
            raise
        except OSError as error:
            return _report(error, 1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "centernet-detect",
        description="Finds objects in photos and videos. Exit status: 1 if a picture failed, 2 for unusable arguments.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="photo, video, folder (its photos, however deep), or quoted glob: 'camera/**/*.mp4'",
    )
    where = parser.add_argument_group(
        "where", "In this process, with every setting of the server as CENTERNET_*, or at a server."
    )
    where.add_argument("--model", help="ONNX file, or with --url the name of a model there; default: the shipped one")
    where.add_argument("--provider", help="auto, cpu or cuda; default: auto")
    where.add_argument("--threads", help="CPU threads of one inference; default: all usable CPUs")
    where.add_argument("--url", help="address of a running server, which does the work: http://127.0.0.1:8000")
    where.add_argument(
        "--api-key", default=os.environ.get("CENTERNET_API_KEY"), help="the server's; default: CENTERNET_API_KEY"
    )
    what = add_filter_arguments(parser, "the settings', or the server's")
    what.add_argument("--every", type=count, default=1, metavar="N", help="of a video, look at every N-th frame")
    output = parser.add_argument_group("output", "Any of them together; - is standard output. Default: --jsonl -")
    output.add_argument("--jsonl", type=Path, metavar="FILE", help="a line of JSON for each picture")
    output.add_argument("--csv", type=Path, metavar="FILE", help="a row for each object")
    output.add_argument(
        "--annotated", type=Path, metavar="FOLDER", help="copies with the boxes drawn; videos as MP4, without sound"
    )
    parsed = parser.parse_args(arguments)
    if parsed.url and (parsed.provider or parsed.threads):
        parser.error("--provider and --threads are the server's own where there is --url")
    if not (parsed.jsonl or parsed.csv or parsed.annotated):
        parsed.jsonl = _STDOUT
    return parsed


def _check_outputs(parsed: argparse.Namespace, sources: Sequence[Source]) -> None:
    """Raises `Overwriting` where writing would destroy something."""
    files = [file for file in (parsed.jsonl, parsed.csv) if file not in (None, _STDOUT)]
    for file in files:
        if file.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES:  # as in --csv *.jpg
            raise Overwriting(f"{file} is named as a picture: --jsonl and --csv take the name of a file to write")
    if parsed.jsonl == parsed.csv is not None:
        raise Overwriting("--jsonl and --csv cannot both go to the same place")
    copies = [parsed.annotated / name_copy(source) for source in sources] if parsed.annotated else []
    for copy, times in collections.Counter(copies).items():
        if times > 1:
            raise Overwriting(f"{copy} would be the copy of {times} files: name the folder that they are all in")
    pictures = {(status.st_dev, status.st_ino) for status in (source.path.stat() for source in sources)}
    for file in [*files, *copies]:
        if file.exists() and ((status := file.stat()).st_dev, status.st_ino) in pictures:
            raise Overwriting(f"{file} is one of the pictures: write elsewhere")


def _open_backend(parsed: argparse.Namespace) -> contextlib.AbstractAsyncContextManager[Backend]:
    if parsed.url:
        return ask_server(parsed.url, parsed.api_key, parsed.model, parsed.threshold, parsed.limit, parsed.labels)
    settings = read_settings_from(parsed, "model", "provider", "threads")
    return run_model(settings, parsed.threshold, parsed.limit, parsed.labels)


@contextlib.contextmanager
def _open_outputs(parsed: argparse.Namespace) -> Iterator[Sequence[Write]]:
    with contextlib.ExitStack() as stack:
        writes: list[Write] = []
        if parsed.annotated:  # first: who reads a line finds the photo's copy
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
    """Returns 0, or 1 if there was a problem."""

    async def process(picture: Picture) -> ImageResult:
        return await _process(picture, backend, parsed.annotated is not None)

    status = 0
    pictures = read_pictures(sources, parsed.every)
    everything = contextlib.closing(in_order(portal, process, pictures, backend.in_flight))
    with _show_progress(parsed, sources) as advance, everything as results:
        for done in results:
            if isinstance(done.result, Problem):
                status = _report(f"{done.picture}: {done.result.title}: {done.result.detail}", 1)
            for write in writes:
                write(done)
            advance()
    return status


def in_order(
    portal: BlockingPortal, work: Callable[[Item], Awaitable[Result]], items: Iterable[Item], in_flight: int
) -> Generator[Result, None, None]:
    """Works on items side by side, `in_flight` at most; gives each result as soon as those before it are given."""
    pending: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(portal.start_task_soon(work, item))
            while pending and (pending[0].done() or len(pending) == in_flight):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        wait(pending)  # nobody closes a connection under those that are on their way


async def _process(picture: Picture, backend: Backend, annotate: bool) -> ImageResult:
    """Raises `Refused` for what would befall every picture, and `ConnectionError`."""
    copy: bytes | NDArray[np.uint8] | None = None
    if annotate and isinstance(picture.content, np.ndarray):
        copy = picture.content  # a frame that fails keeps its place in the video
    try:
        if isinstance(picture.content, UnreadableFile):
            raise picture.content
        answer = await backend.detect(picture.content)
        if annotate:
            model = backend.models.get(answer.model)
            if model is None or not (
                {found.label_id for found in answer.detections} <= {label.label_id for label in model.labels}
            ):
                raise ConnectionError(f"the server's model {answer.model} has been swapped meanwhile: start again")
            copy = await to_thread.run_sync(draw, picture, answer, model)
        return ImageResult(picture, answer, copy)
    except Refused as refused:
        if refused.reason in _REASONS_OF_ALL or refused.problem.status in _STATUSES_OF_ALL:
            raise
        return ImageResult(picture, refused.problem, copy)
    except ConnectionError:
        raise
    except (UnreadableFile, OSError, InvalidImage) as error:
        problem = Problem(type="/docs#unreadable-file", title="The file cannot be read", status=422, detail=str(error))
        return ImageResult(picture, problem, copy)


@contextlib.contextmanager
def _show_progress(parsed: argparse.Namespace, sources: Sequence[Source]) -> Iterator[Callable[[], object]]:
    """Gives what moves the bar on; there is none without tqdm, nor where it would run into the lines."""
    if tqdm is None or not sys.stderr.isatty() or (_STDOUT in (parsed.jsonl, parsed.csv) and sys.stdout.isatty()):
        yield lambda: None
        return
    with tqdm(total=count_pictures(sources, parsed.every), unit=" pictures", file=sys.stderr) as bar:
        yield bar.update


def _report(error: object, status: int) -> int:
    """Says on standard error what is wrong, clear of the bar; returns the status."""
    say = print if tqdm is None else tqdm.write
    say(f"centernet-detect: {error}", file=sys.stderr)
    return status
