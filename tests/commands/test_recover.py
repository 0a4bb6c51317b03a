"""Corrupt bytes go from everywhere they stand; work that nobody continues is pruned."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from moe_distill.commands.recover import abandoned_folders, remove_corrupt, remove_folder
from moe_distill.errors import DataError, ResourceError
from moe_distill.pipeline.resumable_work import hold_workspace

FILE, OTHER, SINGLE = "bb22", hashlib.md5(b"good").hexdigest(), "cc33"
LISTING = json.dumps([{"md5": OTHER, "relpath": "sub/other"}, {"md5": FILE, "relpath": "sub/shard"}])
DIRECTORY = f"{hashlib.md5(LISTING.encode()).hexdigest()}.dir"
DAY = 86_400


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Outputs hard-linked with DVC's cache and with a work folder, as after a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    cache = tmp_path / ".dvc/cache/files/md5"
    monkeypatch.setattr("subprocess.check_output", lambda *_, **__: f"{tmp_path / '.dvc/cache'}\n")
    lock = f"stages: {{a: {{outs: [{{path: data, md5: {DIRECTORY}}}, {{path: curve.tsv, md5: {SINGLE}}}]}}}}"
    contents = {
        Path("dvc.lock"): lock,
        cache / DIRECTORY[:2] / DIRECTORY[2:]: LISTING,
        Path("data/sub/shard"): "corrupt",
        Path("data/sub/other"): "good",
        Path("curve.tsv"): "corrupt",
    }
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    links = {
        "data/sub/shard": [cache / FILE[:2] / FILE[2:], Path(".work/teacher/key/shards/shard")],
        "data/sub/other": [cache / OTHER[:2] / OTHER[2:]],
        "curve.tsv": [cache / SINGLE[:2] / SINGLE[2:]],
    }
    for source, targets in links.items():
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
    unlike = Path(".work/train/key/shard")
    unlike.parent.mkdir(parents=True)
    unlike.write_text("another file of that name")
    return tmp_path


def test_r21_corrupt_bytes_are_evicted_from_workspace_cache_and_work(project: Path) -> None:
    removed = set(remove_corrupt(project / "data/sub/shard"))
    assert {path.resolve() for path in removed} == {
        project / "data/sub/shard",
        project / ".dvc/cache/files/md5/bb/22",
        project / ".work/teacher/key/shards/shard",
    }
    assert not any(path.exists() for path in removed)
    assert Path("data/sub/other").exists()
    assert Path(".work/train/key/shard").exists()


@pytest.mark.usefixtures("project")
def test_copies_that_are_no_links_go_too() -> None:
    copy = Path(".work/train/key/sub/shard")
    copy.parent.mkdir(parents=True)
    copy.write_text("corrupt")
    assert copy.resolve() in list(remove_corrupt(Path("data/sub/shard")))
    assert not copy.exists()


@pytest.mark.usefixtures("project")
def test_what_the_cache_holds_as_it_was_written_stays() -> None:
    """Where files are copied and not linked, the cache is whole though the workspace is not."""
    Path("data/sub/other").unlink()
    Path("data/sub/other").write_text("corrupt")
    assert list(remove_corrupt(Path("data/sub/other"))) == [Path("data/sub/other")]
    assert Path(".dvc/cache/files/md5", OTHER[:2], OTHER[2:]).read_text() == "good"


def test_a_file_in_work_needs_no_output(project: Path) -> None:
    unlike = project / ".work/train/key/shard"
    assert [path.resolve() for path in remove_corrupt(unlike)] == [unlike]
    assert Path("data/sub/shard").exists()


def test_a_folder_is_refused(project: Path) -> None:
    with pytest.raises(DataError, match="data is a folder; name the corrupt file in it"):
        list(remove_corrupt(project / "data"))


def test_without_its_list_of_files_a_folder_cannot_be_searched(project: Path) -> None:
    (project / ".dvc/cache/files/md5" / DIRECTORY[:2] / DIRECTORY[2:]).unlink()
    with pytest.raises(DataError, match="lacks the list of the files of data; run: dvc fetch data"):
        list(remove_corrupt(Path("data/sub/shard")))
    assert Path("data/sub/shard").exists()


@pytest.mark.usefixtures("project")
def test_a_file_that_is_an_output_is_evicted() -> None:
    assert len(list(remove_corrupt(Path("curve.tsv")))) == 2
    assert not Path("curve.tsv").exists()


@pytest.mark.usefixtures("project")
def test_a_copy_of_the_corrupt_file_in_the_cache_goes_though_the_file_itself_is_gone() -> None:
    Path("curve.tsv").unlink()
    assert [path.name for path in remove_corrupt(Path("curve.tsv"))] == [SINGLE[2:]]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["params.yaml", "data/sub/unknown", "database"])
def test_what_dvc_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} belongs to no output in dvc.lock"):
        list(remove_corrupt(Path(name)))


@pytest.mark.usefixtures("project")
def test_nothing_is_evicted_while_a_stage_runs() -> None:
    with hold_workspace("train_kd"), pytest.raises(ResourceError, match="train_kd already runs"):
        list(remove_corrupt(Path("curve.tsv")))
    assert Path("curve.tsv").exists()


def test_abandoned_work_is_pruned_and_its_bytes_are_told(project: Path) -> None:
    for name, age in (("old", 8 * DAY), ("held", 8 * DAY), ("new", 6 * DAY)):
        folder = Path(".work/stage", name)
        (folder / "sub").mkdir(parents=True)
        (folder / "sub/file").write_bytes(b"x" * 1000)
        Path(f"{folder}.lock").touch()
        if name == "old":
            os.link(project / "data/sub/shard", folder / "linked")  # it stays where else it stands
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (time.time() - age,) * 2)
    with FileLock(".work/stage/held.lock"):
        freed = {folder.name: remove_folder(folder) for folder in abandoned_folders(7.0)}
    assert freed == {"old": 1000}
    assert sorted(path.name for path in Path(".work/stage").iterdir() if path.is_dir()) == ["held", "new"]
