"""Atomic files, published folders, and who may hold a work folder."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from moe_distill.errors import ResourceError
from moe_distill.workspace import (
    canonical_json,
    fingerprint,
    folder_fingerprint,
    fresh_folder,
    project_root,
    publish,
    sha256_file,
    work_folder,
    write_atomically,
    write_json,
)

SOURCE = Path(__file__).resolve().parents[1] / "src"
HOLDER = """
import sys
from moe_distill.workspace import work_folder
with work_folder("stage", "k" * 64) as folder:
    (folder / "half").write_text("done")
    print("held", flush=True)
    sys.stdin.readline()
"""
KEY = "k" * 64


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_canonical_json_is_equal_for_equal_values():
    value = {"b": [1, 2.5, None, True], "a": {"y": "é", "x": ""}}
    other = {"a": {"x": "", "y": "é"}, "b": (1, 2.5, None, True)}
    assert canonical_json(value) == canonical_json(other)
    assert canonical_json(value).endswith("}\n")
    assert "é" in canonical_json(value)
    assert json.loads(canonical_json(value)) == value
    assert fingerprint(value) == fingerprint(other)
    assert fingerprint(value) != fingerprint({**value, "b": [1, 2.5, None, False]})
    assert len(fingerprint(value)) == 64


def test_folder_fingerprint_sees_names_and_bytes(tmp_path):
    (tmp_path / "a/sub").mkdir(parents=True)
    (tmp_path / "a/sub/file").write_bytes(b"1")
    before = folder_fingerprint(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert folder_fingerprint(tmp_path / "b") == before  # its own name is no part of it
    (tmp_path / "b/sub/file").write_bytes(b"2")
    changed = folder_fingerprint(tmp_path / "b")
    (tmp_path / "b/sub/file").rename(tmp_path / "b/file")
    assert len({before, changed, folder_fingerprint(tmp_path / "b")}) == 3


def test_write_atomically_writes_all_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new/folder/file.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file.bin"]
    assert sha256_file(path) == "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"


def test_write_atomically_keeps_the_old_content_when_it_is_killed(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def killed(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moe_distill.workspace.sync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_write_atomically_does_not_write_through_a_hard_link(tmp_path):
    write_atomically(tmp_path / "file", b"old")
    os.link(tmp_path / "file", tmp_path / "cached")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "cached").read_bytes() == b"old"


def test_write_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": 2.0})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": 2.0,\n  "b": 1\n}\n'


def make_folder(folder: Path, content: str) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/file").write_text(content, encoding="utf-8")
    return folder


def test_publish_links_the_files(tmp_path):
    source = make_folder(tmp_path / "work", "one")
    publish(source, tmp_path / "data/out")
    assert (tmp_path / "data/out/sub/file").samefile(source / "sub/file")
    assert names(tmp_path / "data") == ["out"]


def test_publish_replaces_what_stood_there(tmp_path):
    old = make_folder(tmp_path / "out", "old")
    (old / "stale").write_text("x", encoding="utf-8")
    os.link(old / "sub/file", tmp_path / "cached")
    publish(make_folder(tmp_path / "work", "new"), tmp_path / "out")
    assert names(tmp_path / "out") == ["sub"]
    assert (tmp_path / "out/sub/file").read_text(encoding="utf-8") == "new"
    assert (tmp_path / "cached").read_text(encoding="utf-8") == "old"


def test_publish_copies_where_links_are_not_possible(tmp_path, monkeypatch):
    def refused(_source: str, _target: str) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    source = make_folder(tmp_path / "work", "one")
    publish(source, tmp_path / "out")
    assert (tmp_path / "out/sub/file").read_text(encoding="utf-8") == "one"
    assert not (tmp_path / "out/sub/file").samefile(source / "sub/file")


def test_fresh_folder_appears_when_the_block_has_ended(tmp_path):
    make_folder(tmp_path / "out", "old")
    with fresh_folder(tmp_path / "out") as folder:
        assert names(folder) == []
        (folder / "file").write_text("new", encoding="utf-8")
        assert (tmp_path / "out/sub/file").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["file"]


def test_fresh_folder_leaves_the_old_one_after_an_error(tmp_path):
    make_folder(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError), fresh_folder(tmp_path / "out") as folder:
        (folder / "file").write_text(str(1 // 0), encoding="utf-8")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["sub"]


def test_fresh_folder_takes_over_from_a_killed_process_of_the_same_pid(tmp_path):
    (tmp_path / f".out.{os.getpid()}.tmp").mkdir()
    with fresh_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert names(tmp_path) == ["out"]


@contextmanager
def holder(root: Path, workspace: Path):
    """A process that holds the work folder of KEY until a line is sent to it."""
    environment = os.environ | {"DVC_ROOT": str(root), "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=workspace,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def release(process: subprocess.Popen) -> None:
    process.stdin.write("end\n")
    process.stdin.flush()


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_project_root_is_the_main_checkout_from_a_temporary_workspace_too(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir("/")
    assert project_root() == tmp_path.resolve()
    monkeypatch.delenv("DVC_ROOT")
    assert project_root() == Path("/")


def test_work_folder_is_kept_after_an_error_and_removed_after_success(root):
    folder = root / ".work/stage" / KEY[:16]
    with pytest.raises(FileExistsError), work_folder("stage", KEY) as held:
        make_folder(held, "half").joinpath("sub").mkdir()
    with work_folder("stage", "other" * 10) as another:
        assert names(another) == []
    with work_folder("stage", KEY) as again:
        assert again == folder
        assert (again / "sub/file").read_text(encoding="utf-8") == "half"
    assert not folder.exists()


def test_r21_a_second_process_of_the_same_workspace_is_refused_within_two_seconds(root):
    with holder(root, root) as process:
        limit = threading.Timer(6.0, process.kill)  # else a waiter would hang here
        limit.start()
        began = time.monotonic()
        with pytest.raises(ResourceError, match=rf"already runs in this workspace as process {process.pid}\b"):
            work_folder("stage", KEY).__enter__()
        assert time.monotonic() - began < 2
        limit.cancel()
        assert process.poll() is None
        with work_folder("stage", "another key" * 8), work_folder("another stage", KEY):
            pass  # other work is free


def test_r21_another_workspace_waits_and_says_so(root, capsys):
    elsewhere = root / "temporary"
    elsewhere.mkdir()
    with holder(root, elsewhere) as process:
        timer = threading.Timer(2.0, release, [process])
        timer.start()
        began = time.monotonic()
        with work_folder("stage", KEY) as folder:
            waited = time.monotonic() - began
            assert names(folder) == []  # the holder finished and removed its work
        timer.join()
    assert 1.5 < waited < 20
    said = capsys.readouterr()
    assert f"process {process.pid} in {elsewhere} computes the same result; waiting" in said.out + said.err


def test_r21_a_waiter_resumes_the_work_of_a_holder_that_dies(root):
    elsewhere = root / "temporary"
    elsewhere.mkdir()
    with holder(root, elsewhere) as process:
        process.kill()
        process.wait()
        with work_folder("stage", KEY) as folder:
            assert (folder / "half").read_text(encoding="utf-8") == "done"
