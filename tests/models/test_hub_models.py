"""The hub itself is never contacted: `snapshot_download` is replaced."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DryRunFileInfo, constants
from huggingface_hub.errors import DryRunError, HFValidationError, LocalEntryNotFoundError

from moe_distill.config.model_keys import HubModel
from moe_distill.errors import DataError, ResourceError
from moe_distill.models import hub_models as hub
from moe_distill.utils.hub_commits import recorded_commit

from .conftest import files

MODEL = HubModel(kind="hub", repository="owner/model", revision="0123abc")
PICKLE = {"pytorch_model.bin", "training_args.bin", "optimizer.pt", "onnx/model.safetensors", "modeling_own.py"}


@pytest.fixture(autouse=True)
def cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture
def repository(student: Path, tmp_path: Path) -> Path:
    """A repository with all a careless author leaves in it."""
    folder = tmp_path / "repository"
    shutil.copytree(student, folder)
    (folder / "onnx").mkdir()
    for name in PICKLE:
        (folder / name).write_bytes(b"harm")
    return folder


def download_from(
    repository: Path, cache: Path, calls: list[dict[str, Any]]
) -> Callable[..., str | list[DryRunFileInfo]]:
    """A `snapshot_download` that filters as the real one does, and tells sizes in a dry run."""

    def snapshot_download(repo_id: str, dry_run: bool = False, **keys: Any) -> str | list[DryRunFileInfo]:
        calls.append({"repo_id": repo_id, "dry_run": dry_run, **keys})
        planned = []
        for path in repository.rglob("*"):
            name = path.relative_to(repository).as_posix()
            if any(fnmatchcase(name, pattern) for pattern in keys["allow_patterns"]) and not any(
                fnmatchcase(name, pattern) for pattern in keys["ignore_patterns"]
            ):
                is_cached = (cache / name).exists()
                size = path.stat().st_size
                planned.append(DryRunFileInfo("0123abc", size, name, str(cache / name), is_cached, not is_cached))
                if not dry_run and not is_cached:
                    (cache / name).parent.mkdir(parents=True, exist_ok=True)
                    (cache / name).symlink_to(path)
        return planned if dry_run else str(cache)

    return snapshot_download


def test_pinned_revision_without_pickles_hub_not_contacted(
    repository: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(hub, "snapshot_download", download_from(repository, tmp_path / "cache", calls))
    hub.snapshot(MODEL, tmp_path / "output")
    assert [(call["repo_id"], call["revision"]) for call in calls] == [("owner/model", "0123abc")] * 2
    assert [call["dry_run"] for call in calls] == [True, False]
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
    "error",
    [
        LocalEntryNotFoundError("no network"),
        HFValidationError("bad name"),
        OSError("disk full"),
        RuntimeError("peer closed connection"),
    ],
)
def test_failed_download_is_one_error_hub_not_contacted(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_args: object, **_keys: object) -> str:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(DataError, match=f"owner/model at revision 0123abc cannot be downloaded; {error}"):
        hub.snapshot(MODEL, tmp_path / "output")


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("cached", [False, True])
def test_what_is_downloaded_and_copied_must_fit_hub_not_contacted(
    repository: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """The hub's cache is on the disk of the output here: a download takes twice the files' size, a copy once."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(hub, "snapshot_download", download_from(repository, tmp_path / "cache", calls))
    if cached:
        hub.snapshot(MODEL, tmp_path / "first")
    size = sum((student / name).stat().st_size for name in files(student))
    needed = size if cached else 2 * size
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(1 << 40, 0, needed - 1))
    before = len(calls)
    with pytest.raises(
        ResourceError, match=r"owner/model at revision 0123abc will take .*; free some, or choose a sma"
    ):
        hub.snapshot(MODEL, tmp_path / "output")
    assert [call["dry_run"] for call in calls[before:]] == [True]  # refused before a byte came
    assert list((tmp_path / "output").iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(1 << 40, 0, needed))
    hub.snapshot(MODEL, tmp_path / "output")
    assert files(tmp_path / "output") == files(student)


def test_out_of_reach_of_the_hub_a_cached_model_is_used_hub_not_contacted(
    repository: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = download_from(repository, tmp_path / "cache", [])

    def snapshot_download(repo_id: str, dry_run: bool = False, **keys: Any) -> object:
        if dry_run:
            raise DryRunError("offline")
        return download(repo_id, **keys)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    hub.snapshot(MODEL, tmp_path / "output")
    assert files(tmp_path / "output") == files(student)


def test_a_branch_is_followed_once_hub_not_contacted(
    repository: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a snapshot in the hub's cache is named by its commit."""
    first, calls = "0123456789" * 4, list[dict[str, Any]]()
    followed = MODEL.model_copy(update={"revision": "main", "allow_unpinned": True})
    for commit in (first, first[::-1]):  # the second time `main` has moved
        monkeypatch.setattr(hub, "snapshot_download", download_from(repository, tmp_path / commit, calls))
        hub.snapshot(followed, tmp_path / "output")
    assert [call["revision"] for call in calls] == ["main", "main", first, first]
    assert recorded_commit("model", "owner/model", "main") == first
    assert files(tmp_path / "output") == files(student)


def test_a_download_that_fails_records_nothing_hub_not_contacted(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "snapshot_download", download_from(repository, tmp_path / ("0" * 40), []))
    with pytest.raises(DataError):
        hub.snapshot(MODEL.model_copy(update={"revision": "main"}), tmp_path / "output")
    assert recorded_commit("model", "owner/model", "main") == "main"
