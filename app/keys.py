"""API keys: what is kept of them, and how one is known."""

import hashlib
import hmac
from collections.abc import Sequence

Digest = bytes  # SHA-256 of a key: the keys themselves are not kept


class Unauthorized(Exception):
    """No key was sent, or none that is known."""


def hash_keys(keys: Sequence[str]) -> tuple[Digest, ...]:
    """Returns each key's digest; raises `ValueError` where there is no key, or one that no header can hold."""
    if not keys:
        raise ValueError("there is no key in it; leave it out to let everybody in")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError("a key is of printable ASCII characters, without spaces")
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def check_key(key: str | None, known: Sequence[Digest]) -> Digest:
    """Returns the digest of a known key; raises `Unauthorized`."""
    if not key:
        raise Unauthorized("send a key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
    digest = hashlib.sha256(key.encode()).digest()
    fits = [hmac.compare_digest(digest, each) for each in known]  # each is compared, whichever fits
    if not any(fits):
        raise Unauthorized("the key is not known")
    return digest
