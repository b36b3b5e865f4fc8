"""Folders on disk or in an object store: one with the photos, one with the Parquet files of those done."""

import contextlib
import dataclasses
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from model.errors import UserError

_CONCURRENT_READS = 16  # from an object store
ORIGIN = "origin"  # key in a file's metadata: what its rows are from


class UnusableStorage(UserError):
    """A folder cannot be opened, or holds other files; the message says why."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A folder in a file system; `prefix`, such as s3://, plus a file's path is its URI."""

    filesystem: fs.FileSystem
    path: str
    prefix: str = ""

    def list_files(self, suffixes: Collection[str]) -> list[fs.FileInfo]:
        """Returns the files with these suffixes, recursively, sorted by path, without hidden ones.

        Empty if the folder does not exist; raises `UnusableStorage` for a name that is not UTF-8, as Parquet requires.
        """
        selector = fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        try:
            return sorted(
                (
                    file
                    for file in self.filesystem.get_file_info(selector)
                    if file.is_file
                    and PurePosixPath(file.path).suffix.lower() in suffixes
                    and not any(part.startswith(".") for part in PurePosixPath(file.path).relative_to(self.path).parts)
                ),
                key=lambda file: file.path,
            )
        except UnicodeDecodeError as error:
            raise UnusableStorage(f"{self.path}: a file's name is not UTF-8, rename it: {error.object!r}") from error


def open_storage(name: str) -> Storage:
    """Opens a path, or a URI that pyarrow supports, such as s3://bucket/folder; raises `UnusableStorage`."""
    scheme, separator, _ = name.partition("://")
    try:
        filesystem, path = fs.FileSystem.from_uri(name if separator else os.path.normpath(Path(name).absolute()))
    except (pa.ArrowInvalid, OSError, UnicodeEncodeError) as error:
        raise UnusableStorage(f"{name}: {error}") from error
    return Storage(filesystem, path, "" if scheme == "file" or not separator else scheme + separator)


def read_column(storage: Storage, column: str, origin: str) -> pa.ChunkedArray:
    """Returns one text column of all Parquet files; deletes truncated files, which a killed run leaves behind.

    Raises `UnusableStorage` if a file lacks the column, or its metadata say that its rows are from another origin.
    """

    def read(file: fs.FileInfo) -> pa.ChunkedArray:
        try:
            with storage.filesystem.open_input_file(file.path) as stream, pq.ParquetFile(stream) as parquet:
                schema = parquet.schema_arrow
                if column not in schema.names:
                    raise UnusableStorage(f"{file.path}: it has no column {column!r}: use a separate folder")
                actual = (schema.metadata or {}).get(ORIGIN.encode(), origin.encode()).decode()
                if actual != origin:
                    raise UnusableStorage(f"{file.path}: its rows are from {actual}: use another folder")
                return parquet.read(columns=[column]).column(column)
        except pa.ArrowInvalid:  # the footer, written last, is missing
            with contextlib.suppress(FileNotFoundError):
                storage.filesystem.delete_file(file.path)
            return pa.chunked_array([], pa.string())

    with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
        columns = list(pool.map(read, storage.list_files({".parquet"})))
    return pa.chunked_array([chunk for each in columns for chunk in each.chunks], pa.string())
