"""`moe-distill export`: a folder that is whole and new, and the hub only where it is asked for (replaced here)."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_distill.commands import export as exporting
from moe_distill.commands.export import export, push, require_repository
from moe_distill.errors import ConfigError, DataError, MoeDistillError, ResourceError
from moe_distill.models.shared_model import share_model
from moe_distill.reporting.model_card import write_model_card
from tests.chain import Chain
from tests.reporting.test_model_card import FIGURES_OF_A_RUN


class Hub:
    """What is asked of the hub, in order; `refusal` is raised where a commit is made."""

    calls: list[tuple[str, str, Any]]
    is_private = True
    refusal: Exception | None = None

    def __init__(self) -> None:
        self.calls = []

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.calls.append(("create", repository, private))

    def model_info(self, repository: str) -> SimpleNamespace:
        assert repository
        return SimpleNamespace(private=self.is_private)

    def create_commit(self, repository: str, operations: list[Any], commit_message: str) -> SimpleNamespace:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append(("commit", repository, {each.path_in_repo: each.path_or_fileobj for each in operations}))
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repository}/commit/0123 {commit_message}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(exporting, "HfApi", lambda: made)
    return made


@pytest.fixture
def student(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished student in models/student of the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = Path("models/student")
    folder.mkdir(parents=True)
    write_model_card(chain.params, FIGURES_OF_A_RUN, share_model(chain.folder / "models/student_init", folder), folder)
    return folder


def test_the_export_is_the_student_and_its_card_names_the_new_place(student: Path) -> None:
    export(student, Path("out/mine"))
    names = {path.name for path in student.iterdir()}
    assert {path.name for path in Path("out/mine").iterdir()} == names
    for name in names - {"README.md"}:
        assert Path("out/mine", name).read_bytes() == (student / name).read_bytes()
        assert not Path("out/mine", name).samefile(student / name), "an edit to the export must not reach DVC's cache"
    card = Path("out/mine/README.md").read_text()
    assert 'name = "out/mine"\n' in card
    assert "pretrained=out/mine,add_bos_token=False" in card
    assert "models/student" not in card
    assert "model-index:" in card
    AutoModelForCausalLM.from_pretrained("out/mine")
    assert AutoTokenizer.from_pretrained("out/mine")("x")["input_ids"][0] == 0


def test_only_a_new_or_empty_folder_is_taken(student: Path) -> None:
    Path("empty").mkdir()
    export(student, Path("empty"))
    before = {path: path.stat().st_mtime_ns for path in Path("empty").iterdir()}
    Path("file").write_text("mine")
    for to, told in (("empty", "empty is not empty; give a folder"), ("file", "file is a file; give a folder")):
        with pytest.raises(DataError, match=told):
            export(student, Path(to))
    assert {path: path.stat().st_mtime_ns for path in Path("empty").iterdir()} == before
    assert Path("file").read_text() == "mine"


def test_what_is_missing_names_the_command_that_makes_it(student: Path) -> None:
    Path("params.yaml").touch()
    with pytest.raises(DataError, match=r"models/student_router does not exist; run: dvc repro train_router"):
        export(Path("models/student_router"), Path("out"))
    (student / "README.md").unlink()
    with pytest.raises(DataError, match=r"has no README.md; it is not evaluated yet; run: dvc repro student"):
        export(student, Path("out"))
    assert not Path("out").exists()


def test_a_student_that_differs_from_its_record_is_not_exported(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "stage", "add", "-n", "student", "-o", student, "true"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "commit", "--force", "--quiet"], check=True)
    export(student, Path("whole"))
    path = student / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # a link into DVC's cache
    path.write_bytes(content)
    for name in (student, student.absolute()):
        with pytest.raises(DataError, match=r"student/model.safetensors is not what dvc.lock records.*dvc checkout"):
            export(name, Path("out"))
    assert not Path("out").exists()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ResourceError, match=r"dvc cannot say where its cache is; .*source .venv/bin/activate"):
        export(student, Path("out"))


def test_a_place_where_no_folder_can_be_is_one_line(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    with pytest.raises(DataError, match="file/a/b cannot be made; Not a directory; give another folder"):
        export(student, Path("file/a/b"))
    Path("disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == Path("disk").resolve())
    with pytest.raises(DataError, match=r"disk is where a disk is mounted; .*; give disk/student"):
        export(student, Path("disk"))


def test_a_link_to_an_empty_folder_of_another_disk_stays_one(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("disk/large").mkdir(parents=True)
    Path("out").symlink_to("disk/large")
    monkeypatch.setattr(Path, "is_mount", lambda path: path == Path("out"))  # as Python 3.11 says of such a link
    disk = Path("disk").resolve()
    monkeypatch.setattr("shutil.disk_usage", lambda asked: SimpleNamespace(free=1e12 if asked == disk else 0))
    export(student, Path("out"))
    assert Path("out").is_symlink()
    assert Path("disk/large/model.safetensors").is_file()
    assert 'name = "out"\n' in Path("disk/large/README.md").read_text()


def test_a_full_disk_is_told_before_anything_is_written(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ResourceError, match="out will take"):
        export(student, Path("out"))
    assert not Path("out").exists()


def test_a_push_is_one_commit_whose_card_names_the_repository(student: Path, hub: Hub) -> None:
    export(student, Path("out"))
    assert hub.calls == [], "nothing is sent unasked"
    assert push(Path("out"), "me/mine", private=True).startswith("https://huggingface.co/me/mine/commit/0123")
    (create, commit) = hub.calls
    assert create == ("create", "me/mine", True)
    assert commit[:2] == ("commit", "me/mine")
    assert set(commit[2]) == {path.name for path in Path("out").iterdir()}
    card = commit[2].pop("README.md").decode()
    assert 'name = "me/mine"\n' in card
    assert all(Path(path) == Path("out", name) for name, path in commit[2].items())
    assert 'name = "out"\n' in Path("out/README.md").read_text()


def test_a_public_repository_is_not_written_where_a_private_one_is_asked_for(student: Path, hub: Hub) -> None:
    export(student, Path("out"))
    hub.is_private = False
    with pytest.raises(DataError, match="me/mine is there and public; leave out --private"):
        push(Path("out"), "me/mine", private=True)
    assert [name for name, *_ in hub.calls] == ["create"]
    push(Path("out"), "me/mine", private=False)


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (401, "no valid token; log in with: hf auth login"),
        (403, "no right"),
        (OSError("no route to\nthe host"), "no route"),
        (RuntimeError("an HTTP library's own"), "library's own"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line_and_the_export_stays(
    student: Path, hub: Hub, refusal: int | Exception, told: str
) -> None:
    export(student, Path("out"))
    response: Any = SimpleNamespace(status_code=refusal, headers={}, request=None)
    hub.refusal = HfHubHTTPError("no", response=response) if isinstance(refusal, int) else refusal
    with pytest.raises(DataError, match=told) as caught:
        push(Path("out"), "me/mine", private=False)
    assert str(caught.value).startswith("me/mine cannot be written on the hub; ")
    assert str(caught.value).endswith("hf upload me/mine out")
    assert "\n" not in str(caught.value)
    assert Path("out/model.safetensors").is_file()


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/..", "me/my model"])
def test_a_name_that_is_no_repository_is_refused_before_anything_is_copied(name: str) -> None:
    with pytest.raises(MoeDistillError, match="give OWNER/NAME") as caught:
        require_repository(name)
    assert isinstance(caught.value, ConfigError)
    require_repository("me/mine")
