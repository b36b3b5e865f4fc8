"""The folders of the `bulk` command, without Ray."""

import os
from pathlib import Path

import pytest

pytest.importorskip("ray")

from app.cluster.storage import UnusableStorage, open_storage  # needs pyarrow, which is installed with Ray


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).touch()
    with pytest.raises(UnusableStorage, match=r"not UTF-8.*caf\\xe9.jpg"):
        open_storage(str(tmp_path)).list_files({".jpg"})
    with pytest.raises(UnusableStorage, match="surrogates"):
        open_storage(name)
