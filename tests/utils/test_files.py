"""Atomic files and published folders."""

import json
import os
from pathlib import Path

import pytest

from moe_distill.utils.files import (
    Json,
    canonical_json,
    fingerprint,
    fingerprint_each,
    folder_fingerprint,
    fresh_folder,
    project_root,
    publish,
    sha256_file,
    write_atomically,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_canonical_json_is_equal_for_equal_values() -> None:
    value: dict[str, Json] = {"b": [1, 2.5, None, True], "a": {"y": "é", "x": ""}}
    other: dict[str, Json] = {"a": {"x": "", "y": "é"}, "b": (1, 2.5, None, True)}
    assert canonical_json(value) == canonical_json(other)
    assert canonical_json(value).endswith("}\n")
    assert "é" in canonical_json(value)
    assert json.loads(canonical_json(value)) == value
    assert fingerprint(value) == fingerprint(other)
    assert fingerprint(value) != fingerprint({**value, "b": [1, 2.5, None, False]})
    assert len(fingerprint(value)) == 64


def test_a_fingerprint_of_several_values_tells_where_one_ends() -> None:
    cases: list[list[Json]] = [["a", "b"], ["b", "a"], ["ab"], ["a"], [["a", "b"]]]
    assert len({fingerprint_each(each) for each in cases}) == len(cases)
    assert fingerprint_each(["a"]) == fingerprint("a")


def test_folder_fingerprint_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a/sub").mkdir(parents=True)
    (tmp_path / "a/sub/file").write_bytes(b"1")
    before = folder_fingerprint(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert folder_fingerprint(tmp_path / "b") == before  # its own name is no part of it
    (tmp_path / "b/sub/file").write_bytes(b"2")
    changed = folder_fingerprint(tmp_path / "b")
    (tmp_path / "b/sub/file").rename(tmp_path / "b/file")
    assert len({before, changed, folder_fingerprint(tmp_path / "b")}) == 3


def test_write_atomically_writes_all_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/file.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file.bin"]
    assert sha256_file(path) == "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"


def test_write_atomically_keeps_the_old_content_when_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def killed(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moe_distill.utils.files.sync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_write_atomically_does_not_write_through_a_hard_link(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    os.link(tmp_path / "file", tmp_path / "cached")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "cached").read_bytes() == b"old"


def test_write_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": 2.0})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": 2.0,\n  "b": 1\n}\n'


def make_folder(folder: Path, content: str) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/file").write_text(content, encoding="utf-8")
    return folder


def test_publish_links_the_files(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "work", "one")
    publish(source, tmp_path / "data/out")
    assert (tmp_path / "data/out/sub/file").samefile(source / "sub/file")
    assert names(tmp_path / "data") == ["out"]


def test_publish_replaces_what_stood_there(tmp_path: Path) -> None:
    old = make_folder(tmp_path / "out", "old")
    (old / "stale").write_text("x", encoding="utf-8")
    os.link(old / "sub/file", tmp_path / "cached")
    publish(make_folder(tmp_path / "work", "new"), tmp_path / "out")
    assert names(tmp_path / "out") == ["sub"]
    assert (tmp_path / "out/sub/file").read_text(encoding="utf-8") == "new"
    assert (tmp_path / "cached").read_text(encoding="utf-8") == "old"


def test_publish_links_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "curve").write_text("new", encoding="utf-8")
    (tmp_path / "out").write_text("old", encoding="utf-8")
    publish(tmp_path / "curve", tmp_path / "out")
    assert (tmp_path / "out").samefile(tmp_path / "curve")
    assert names(tmp_path) == ["curve", "out"]


def test_r21_publish_leaves_out_and_removes_what_killed_processes_left(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "work", "one")
    (source / "sub/.file.1.tmp").touch()  # half a file
    (tmp_path / "data/.out.1.tmp/sub").mkdir(parents=True)  # half a publication
    publish(source, tmp_path / "data/out")
    assert names(tmp_path / "data") == ["out"]
    assert names(tmp_path / "data/out/sub") == ["file"]


def test_publish_copies_where_links_are_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_source: str, _target: str) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    source = make_folder(tmp_path / "work", "one")
    publish(source, tmp_path / "out")
    assert (tmp_path / "out/sub/file").read_text(encoding="utf-8") == "one"
    assert not (tmp_path / "out/sub/file").samefile(source / "sub/file")


def test_fresh_folder_appears_when_the_block_has_ended(tmp_path: Path) -> None:
    make_folder(tmp_path / "out", "old")
    with fresh_folder(tmp_path / "out") as folder:
        assert names(folder) == []
        (folder / "file").write_text("new", encoding="utf-8")
        assert (tmp_path / "out/sub/file").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["file"]


def test_fresh_folder_leaves_the_old_one_after_an_error(tmp_path: Path) -> None:
    make_folder(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError), fresh_folder(tmp_path / "out") as folder:
        (folder / "file").write_text(str(1 // 0), encoding="utf-8")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["sub"]


def test_r21_fresh_folder_removes_what_killed_processes_left(tmp_path: Path) -> None:
    for pid in (1, os.getpid()):
        (tmp_path / f".out.{pid}.tmp").mkdir()
    with fresh_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert names(tmp_path) == ["out"]


def test_project_root_is_the_main_checkout_from_a_temporary_workspace_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir("/")
    assert project_root() == tmp_path.resolve()
    monkeypatch.delenv("DVC_ROOT")
    assert project_root() == Path("/")
