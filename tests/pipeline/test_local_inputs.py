"""Content of local texts and models, as DVC follows it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from moe_distill.config.corpus_keys import Files
from moe_distill.config.model_keys import FolderModel
from moe_distill.config.profile import Profile
from moe_distill.errors import DataError
from moe_distill.pipeline.local_inputs import STAGES, Recorded, local_inputs
from moe_distill.utils.files import canonical_json
from tests.params import ROOT, shipped_profile


def make_profile(paths: list[str], teacher: str) -> Profile:
    profile = shipped_profile("test")
    texts = Files(kind="files", name="mine", paths=paths, field="text", weight=1.0, max_documents=None)
    corpus = profile.corpus.model_copy(update={"sources": [*profile.corpus.sources, texts]})
    models = profile.models.model_copy(update={"teacher": FolderModel(kind="folder", path=teacher)})
    return profile.model_copy(update={"corpus": corpus, "models": models})


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """Texts and a teacher below the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name in ("texts/a.txt", "texts/deep/b.txt", "texts/notes.md", "teacher/model.safetensors", "teacher/x.bin"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    return make_profile(["texts"], "teacher")


def test_nothing_local_is_the_same_everywhere() -> None:
    for name in ("test", "tiny", "p100", "t4x2"):
        assert local_inputs(shipped_profile(name)) == {"corpus": "none", "teacher": "none", "student": "none"}


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("texts/a.txt", {"corpus"}),
        ("texts/deep/b.txt", {"corpus"}),
        ("texts/new.txt", {"corpus"}),
        ("texts/notes.md", set()),  # no kind of text that is read
        ("teacher/model.safetensors", {"teacher"}),
        ("teacher/config.json", {"teacher"}),
        ("teacher/x.bin", set()),  # never copied
    ],
)
def test_an_edit_changes_what_is_made_of_it_and_nothing_else(profile: Profile, file: str, changed: set[str]) -> None:
    before = local_inputs(profile)
    Path(file).write_text("edited")
    after = local_inputs(profile)
    assert {name for name in after if after[name] != before[name]} == changed


def test_a_renamed_text_is_another_one(profile: Profile) -> None:
    before = local_inputs(profile)
    Path("texts/a.txt").rename("texts/c.txt")
    assert local_inputs(profile)["corpus"] != before["corpus"]


def test_another_checkout_and_its_temporary_workspaces_say_the_same(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = local_inputs(profile)
    shutil.copytree(tmp_path, tmp_path.with_name("elsewhere") / "main")
    (tmp_path.with_name("elsewhere") / "temp").mkdir()
    monkeypatch.chdir(tmp_path.with_name("elsewhere") / "temp")
    monkeypatch.setenv("DVC_ROOT", "../main")
    assert local_inputs(profile) == here


def record(values: dict[str, Recorded]) -> None:
    """A dvc.lock of stages that have run with these fingerprints."""
    stages = {STAGES[name]: {"params": {"data/sources.json": {name: value}}} for name, value in values.items()}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def test_what_is_not_here_counts_as_dvc_lock_records_it(profile: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    here = local_inputs(profile)
    record(here)
    shutil.rmtree("texts")
    shutil.rmtree("teacher")
    assert local_inputs(profile) == here
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert "`texts` of the corpus is not here" in said[0]
    assert "the teacher's folder teacher is not here" in said[1]


def test_a_folder_that_is_not_here_must_be_the_one_that_was_read(profile: Profile) -> None:
    """A misspelt path is none that dvc.lock knows, whatever it knows of the path before."""
    record(local_inputs(profile))
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    lock["stages"][STAGES["teacher"]]["params"]["profiles/mine.yaml"] = {
        "models.teacher": {"kind": "folder", "path": "teacher"}
    }
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    shutil.rmtree("teacher")
    local_inputs(profile)
    with pytest.raises(DataError, match=r"teecher is no folder; change `models.teacher.path`"):
        local_inputs(make_profile(["texts"], "teecher"))


@pytest.mark.usefixtures("profile")
@pytest.mark.parametrize("order", [["texts", "more/*.jsonl"], ["more/*.jsonl", "texts"]])
def test_an_edit_is_seen_where_another_path_is_gone(order: list[str]) -> None:
    Path("more").mkdir()
    Path("more/a.jsonl").write_text("{}")
    two = make_profile(order, "teacher")
    here = local_inputs(two)
    record(here)
    shutil.rmtree("more")
    assert local_inputs(two) == here
    Path("texts/a.txt").write_text("edited")
    after = local_inputs(two)
    assert after["corpus"] != here["corpus"]
    Path("texts/a.txt").write_text("texts/a.txt")
    assert local_inputs(two) == here


@pytest.mark.parametrize(
    ("paths", "teacher", "said"),
    [
        (["texts", "none"], "teacher", "`none` matches no .txt"),
        (["a" * 5000], "teacher", "`a{5000}` cannot be read"),
        (["texts/notes.md"], "teacher", "matches no .txt"),
        (["texts"], "none", "none is no folder.*`models.teacher.path`"),
        (["texts"], "texts/a.txt", "texts/a.txt is no folder"),
    ],
)
def test_what_no_stage_has_ever_read_is_refused(profile: Profile, paths: list[str], teacher: str, said: str) -> None:
    record(local_inputs(profile))
    Path("dvc.lock").write_text(Path("dvc.lock").read_text().replace("models@teacher", "other"))
    with pytest.raises(DataError, match=said):
        local_inputs(make_profile(paths, teacher))


def test_a_file_name_that_is_not_utf8_is_a_name(profile: Profile) -> None:
    before = local_inputs(profile)
    for folder in ("texts", "teacher"):
        Path(folder, os.fsdecode(b"caf\xe9.txt")).write_text("text")
    after = local_inputs(profile)
    assert {name for name in after if after[name] != before[name]} == {"corpus", "teacher"}
    assert json.loads(canonical_json(after)) == after


def test_a_file_that_cannot_be_read_is_named(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("moe_distill.pipeline.local_inputs.sha256_file", refused)
    with pytest.raises(DataError, match=r"texts/a\.txt cannot be read; Permission denied"):
        local_inputs(profile)


def test_the_stages_that_dvc_runs_follow_them() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert "data/sources.json" in stages["check"]["outs"]
    assert {"data/sources.json": ["corpus"]} in stages["corpus"]["params"]
    assert {"data/sources.json": ["${key}"]} in stages["models"]["do"]["params"]
    assert set(STAGES.values()) == {"corpus", *(f"models@{key}" for key in stages["models"]["foreach"])}
