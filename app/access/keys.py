"""API keys: hashing and verification."""

import hashlib
import hmac
from collections.abc import Sequence

Digest = bytes  # SHA-256 of a key; the keys themselves are not kept in memory


class Unauthorized(Exception):
    """The request has no API key, or an unknown one."""


def hash_keys(keys: Sequence[str]) -> tuple[Digest, ...]:
    """Returns each key's digest; raises `ValueError` if there is no key, or one that a header cannot carry."""
    if not keys:
        raise ValueError("it holds no key; leave it unset to disable authentication")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError("a key consists of printable ASCII characters, without spaces")
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def check_key(key: str | None, known: Sequence[Digest]) -> Digest:
    """Returns the digest of `key` if it is one of the known keys; raises `Unauthorized`."""
    if not key:
        raise Unauthorized("send a key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
    digest = hashlib.sha256(key.encode()).digest()
    # all are compared, whichever matches: constant time
    matches = [hmac.compare_digest(digest, each) for each in known]
    if not any(matches):
        raise Unauthorized("the key is not known")
    return digest
