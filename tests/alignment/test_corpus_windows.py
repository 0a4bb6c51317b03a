"""The fingerprints of windows: of all that they depend on, and of nothing else."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from moe_distill.alignment.corpus_windows import write_windows
from moe_distill.config.profile import Windows
from moe_distill.shards.format import read_index
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS
from tests.chain import write_corpus

from .toy import TEXT, byte_level

LIMITS = Windows(teacher_max_length=64, student_max_length=64)


def write_model(folder: Path, tokenizer: Tokenizer) -> Path:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 600, "bos_token_id": 0}))
    return folder


def fingerprints(
    folder: Path, teacher_size: int = 340, student_size: int = 300, limits: Windows = LIMITS
) -> tuple[str, str]:
    """Those of the teacher's and of the student's training windows."""
    write_corpus(folder / "corpus", [TEXT + str(number) for number in range(2)])
    models = (
        write_model(folder / "models/teacher", byte_level(teacher_size)),
        write_model(folder / "models/student", byte_level(student_size)),
    )
    write_windows(limits, folder / "corpus", *models, folder / "windows")
    teacher = read_index(folder / "windows/teacher/train", TEACHER_WINDOWS)
    student = read_index(folder / "windows/student/train", STUDENT_WINDOWS)
    return teacher.fingerprint, student.fingerprint


def test_windows_of_each_model_have_the_fingerprint_of_all_they_depend_on(tmp_path: Path) -> None:
    teacher, student = fingerprints(tmp_path / "first")
    assert fingerprints(tmp_path / "again") == (teacher, student)
    shorter = LIMITS.model_copy(update={"student_max_length": 48})
    for name, changed in {
        "another tokenizer": fingerprints(tmp_path / "student", student_size=310),
        "shorter windows": fingerprints(tmp_path / "limits", limits=shorter),
    }.items():
        assert changed[0] == teacher, name
        assert changed[1] != student, name
    other = fingerprints(tmp_path / "teacher", teacher_size=330)
    assert other[0] != teacher
    assert other[1] != student, "the student's windows are cuts of the teacher's"
