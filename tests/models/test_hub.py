"""The hub itself is never contacted: `snapshot_download` is replaced."""

import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from moe_distill.config import HubModel
from moe_distill.errors import DataError
from moe_distill.models import hub

from .conftest import files

MODEL = HubModel(kind="hub", repository="owner/model", revision="0123abc")
PICKLE = {"pytorch_model.bin", "training_args.bin", "optimizer.pt", "onnx/model.safetensors", "modeling_own.py"}


@pytest.fixture
def repository(student: Path, tmp_path: Path) -> Path:
    """A repository with all a careless author leaves in it."""
    folder = tmp_path / "repository"
    shutil.copytree(student, folder)
    (folder / "onnx").mkdir()
    for name in PICKLE:
        (folder / name).write_bytes(b"harm")
    return folder


def download_from(repository: Path, cache: Path, calls: list[dict[str, Any]]) -> Callable[..., str]:
    """A `snapshot_download` that filters as the real one does."""

    def snapshot_download(repo_id: str, **keys: Any) -> str:
        calls.append({"repo_id": repo_id, **keys})
        for path in repository.rglob("*"):
            name = path.relative_to(repository).as_posix()
            if any(fnmatchcase(name, pattern) for pattern in keys["allow_patterns"]) and not any(
                fnmatchcase(name, pattern) for pattern in keys["ignore_patterns"]
            ):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                (cache / name).symlink_to(path)
        return str(cache)

    return snapshot_download


def test_pinned_revision_without_pickles_hub_not_contacted(
    repository: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(hub, "snapshot_download", download_from(repository, tmp_path / "cache", calls))
    hub.snapshot(MODEL, tmp_path / "output")
    assert [(call["repo_id"], call["revision"]) for call in calls] == [("owner/model", "0123abc")]
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*")) == sorted(files(student))
    assert files(tmp_path / "output") == files(student)


def test_repository_of_pickles_is_refused_hub_not_contacted(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "snapshot_download", download_from(repository, tmp_path / "cache", []))
    with pytest.raises(DataError, match=r"owner/model at revision 0123abc has no \*\.safetensors"):
        hub.snapshot(MODEL, tmp_path / "output")


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no network"), HFValidationError("bad name"), OSError("disk full")]
)
def test_failed_download_is_one_error_hub_not_contacted(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_args: object, **_keys: object) -> str:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(DataError, match=f"owner/model at revision 0123abc cannot be downloaded; {error}"):
        hub.snapshot(MODEL, tmp_path / "output")
