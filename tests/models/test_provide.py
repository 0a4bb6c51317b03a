"""Each kind of model ends as the same kind of folder."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_distill.config.model_keys import FolderModel, HubModel
from moe_distill.errors import DataError
from moe_distill.models import provide
from moe_distill.models.model_folder import copy_model_folder

from .conftest import AWKWARD, TEACHER, files

Trained = tuple[Path, dict[str, float]]


def test_tiny_teacher_reports_what_it_measured(teacher: Trained) -> None:
    folder, metrics = teacher
    parameters = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(folder).parameters())
    assert metrics.keys() == {"teacher_parameters", "teacher_bits_per_byte", "teacher_steps"}
    assert (metrics["teacher_parameters"], metrics["teacher_steps"]) == (parameters, TEACHER.steps)


def test_folder_is_copied_for_either_role(teacher: Trained, student: Path, tmp_path: Path) -> None:
    source = FolderModel(kind="folder", path=str(teacher[0]))
    assert provide.provide_teacher(source, 3, tmp_path, tmp_path / "teacher") == {
        "teacher_parameters": teacher[1]["teacher_parameters"]
    }
    assert files(tmp_path / "teacher") == files(teacher[0])
    metrics = provide.provide_student(FolderModel(kind="folder", path=str(student)), 3, tmp_path, tmp_path / "student")
    assert metrics.keys() == {"student_parameters"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(tmp_path / "student")


def test_relative_folder_is_sought_in_the_main_checkout(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(student.parent))
    provide.provide_student(FolderModel(kind="folder", path=student.name), 3, tmp_path, tmp_path / "copy")
    assert files(tmp_path / "copy") == files(student)


def test_missing_folder_is_refused_by_the_name_given(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no/such/folder has no config\.json"):
        provide.provide_student(FolderModel(kind="folder", path="no/such/folder"), 3, tmp_path, tmp_path / "copy")


def test_hub_model_is_fetched_hub_not_contacted(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(params: HubModel, output: Path) -> None:
        asked.append(params)
        copy_model_folder(student, "it", output)

    monkeypatch.setattr(provide, "snapshot", snapshot)
    model = HubModel(kind="hub", repository="owner/model", revision="0123abc")
    assert provide.provide_student(model, 3, tmp_path, tmp_path / "copy")["student_parameters"] > 0
    assert asked == [model]


def test_another_prefix_token_and_a_tokenizer_class_that_fits(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(student, source)
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    model = FolderModel(kind="folder", path=str(source), prefix_token="!")
    provide.provide_student(model, 3, tmp_path, tmp_path / "copy")
    file = Tokenizer.from_file(str(source / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(tmp_path / "copy")
    for text in ("x = 12  # it's", AWKWARD):
        assert auto(text, add_special_tokens=False)["input_ids"] == file.encode(text, add_special_tokens=False).ids
    assert json.loads((tmp_path / "copy/config.json").read_text())["bos_token_id"] == file.token_to_id("!")
    assert "now names PreTrainedTokenizerFast" in capsys.readouterr().out
