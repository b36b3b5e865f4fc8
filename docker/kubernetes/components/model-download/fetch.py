"""Downloads a model before the server starts: `fetch.py FILE`, from MODEL_URL, if its SHA-256 is MODEL_SHA256."""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

_TIMEOUT_SECONDS = 60  # without receiving a byte
_CHUNK = 2**20


class NotFetched(Exception):
    """The model could not be downloaded; the message says why."""


def fetch(environment: Mapping[str, str], file: Path) -> None:
    """Downloads the model to `file`, atomically. Raises `NotFetched`."""
    try:
        url, digest = environment["MODEL_URL"], environment["MODEL_SHA256"].lower()
    except KeyError as missing:
        raise NotFetched(f"set {missing.args[0]}") from None
    if not url.startswith(("https://", "http://")):
        raise NotFetched(f"MODEL_URL is {url!r}: it must begin with https:// or http://")
    request = urllib.request.Request(url)
    if authorization := environment.get("MODEL_AUTHORIZATION"):
        request.add_unredirected_header("Authorization", authorization)  # not sent on redirects
    part = file.with_suffix(".part")  # not .onnx, which the server would load
    found = hashlib.sha256()
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response, part.open("wb") as output:
            while chunk := response.read(_CHUNK):
                found.update(chunk)
                output.write(chunk)
        if found.hexdigest() != digest:
            raise NotFetched(f"the file at MODEL_URL has the SHA-256 {found.hexdigest()}, not {digest}")
        part.replace(file)
    except (OSError, ValueError) as error:  # ValueError: a URL without a host
        raise NotFetched(f"{url.partition('?')[0]} cannot be fetched: {error}") from error  # a query may be a signature
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        fetch(os.environ, Path(sys.argv[1]))
    except NotFetched as fault:
        sys.exit(f"fetch: {fault}")
