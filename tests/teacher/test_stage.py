"""The stage as DVC runs it: in a workspace, from the parameters to published shards."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import pytest

from stages.teacher import main
from tests.chain import ROOT, Chain


@pytest.fixture
def workspace(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A copy of the chain with the project's code, the current folder."""
    copied = chain.copy(tmp_path / "workspace")
    for name in ("dvc.yaml", "src", "stages"):
        (copied.folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(copied.folder)
    return copied


def test_weights_are_hashed_once(workspace: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are gigabytes, and the stage names its work, its shards and its head by them."""
    digest, hashed = hashlib.file_digest, Counter[Path]()

    def counting(file: BinaryIO, name: str) -> object:
        hashed[Path(file.name).resolve()] += 1
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    main(workspace.params)
    assert hashed[workspace.folder / "models/teacher/model.safetensors"] == 1
