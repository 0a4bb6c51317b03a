"""Check that windows, teacher targets, vocabulary map and models were made from one another.

Each store has fingerprints of its inputs in its metadata. Every `check_…` raises DataError where two differ; the error
names both, and the command that writes the older store again.
"""

from pathlib import Path

from moe_distill.config.profile import Capture
from moe_distill.errors import DataError
from moe_distill.shards.format import Index
from moe_distill.shards.reader import ShardReader
from moe_distill.utils.files import fingerprint, sha256_file

TOKENIZE, TEACHER = "run: dvc repro -f tokenize", "run: dvc repro -f teacher"


def capture_fingerprint(params: Capture) -> str:
    """Fingerprint of the section `teacher` of a profile."""
    return fingerprint(params.model_dump(mode="json"))


def windows_fingerprint(windows: Index) -> str:
    """Fingerprint of the content of windows, by the hashes of their files; teacher targets refer to their rows."""
    return fingerprint([entry.sha256 for entry in windows.files])


def tokenizer_fingerprint(model: Path) -> str:
    """SHA-256 of a model folder's tokenizer.json."""
    return sha256_file(model / "tokenizer.json")


def check_tokenizer(windows: ShardReader, model: Path) -> None:
    """Refuse windows of another tokenizer than that of the model folder `model`."""
    what, whose = f"{windows.folder} was made with tokenizer", f"{model} has"
    _require_equal(windows, "tokenizer", tokenizer_fingerprint(model), what, whose, TOKENIZE)


def check_same_windows(windows: ShardReader, targets: ShardReader) -> None:
    """Refuse teacher targets of other teacher windows than those that the student's windows are aligned with."""
    expected = str(windows.index.metadata["teacher_windows"])
    what, whose = f"{targets.folder} was made from teacher windows", f"{windows.folder} points at"
    _require_equal(targets, "windows_fingerprint", expected, what, whose, TEACHER)


def check_capture(targets: ShardReader, params: Capture) -> None:
    """Refuse teacher targets that were captured with other parameters than the profile's."""
    what, whose = f"{targets.folder} was captured with parameters", "section `teacher` of the profile is"
    _require_equal(targets, "capture_fingerprint", capture_fingerprint(params), what, whose, TEACHER)


def check_same_teacher(targets: ShardReader, other: Path, teacher_fingerprint: str) -> None:
    """Refuse teacher targets of another teacher than `teacher_fingerprint`, that of the folder `other`."""
    what, whose = f"{targets.folder} is of teacher", f"{other} is of"
    _require_equal(targets, "teacher_fingerprint", teacher_fingerprint, what, whose, TEACHER)


def check_vocabulary_map(vocabulary_map: ShardReader, windows: ShardReader, targets: ShardReader) -> None:
    """Refuse a map between other vocabularies than those of the student's windows and of the teacher targets."""
    for key, store in (("student_tokenizer", windows), ("teacher_tokenizer", targets)):
        what, whose = f"{vocabulary_map.folder} maps {key.replace('_', ' ')}", f"{store.folder} has"
        _require_equal(vocabulary_map, key, str(store.index.metadata["tokenizer"]), what, whose, TOKENIZE)
    found, rows = vocabulary_map.rows("teacher_ids"), targets.index.metadata["output_rows"]
    if found != rows:
        raise DataError(f"{vocabulary_map.folder} has {found} teacher ids, {targets.folder} has {rows}", fix=TOKENIZE)


def _require_equal(store: ShardReader, key: str, expected: str, what: str, whose: str, fix: str) -> None:
    found = store.index.metadata.get(key)
    if found != expected:
        raise DataError(f"{what} {found}", f"{whose} {expected}", fix)
