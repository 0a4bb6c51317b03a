"""Do windows, shards, vocabulary map and model belong together? Each carries fingerprints of what it was made from.

Every function raises DataError, naming both fingerprints and the command that mends it.
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
    """Fingerprint of what windows hold: shards count their rows, so windows cut otherwise are other windows."""
    return fingerprint([entry.sha256 for entry in windows.files])


def tokenizer_fingerprint(model: Path) -> str:
    """SHA-256 of a model folder's tokenizer.json."""
    return sha256_file(model / "tokenizer.json")


def check_tokenizer(windows: ShardReader, model: Path) -> None:
    """Refuse windows that were made with another tokenizer than the model's."""
    what, whose = f"{windows.folder} was made with tokenizer", f"{model} has"
    _require_equal(windows, "tokenizer", tokenizer_fingerprint(model), what, whose, TOKENIZE)


def check_same_windows(windows: ShardReader, targets: ShardReader) -> None:
    """Refuse shards of other teacher windows (another corpus, tokenizer or length) than the student's point at."""
    expected = str(windows.index.metadata["teacher_windows"])
    what, whose = f"{targets.folder} was made from teacher windows", f"{windows.folder} points at"
    _require_equal(targets, "windows_fingerprint", expected, what, whose, TEACHER)


def check_capture(targets: ShardReader, params: Capture) -> None:
    """Refuse shards that were captured with other parameters than the profile's."""
    what, whose = f"{targets.folder} was captured with parameters", "section `teacher` of the profile is"
    _require_equal(targets, "capture_fingerprint", capture_fingerprint(params), what, whose, TEACHER)


def check_same_teacher(targets: ShardReader, other: Path, teacher_fingerprint: str) -> None:
    """Refuse shards of another teacher than the folder `other` is of."""
    what, whose = f"{targets.folder} is of teacher", f"{other} is of"
    _require_equal(targets, "teacher_fingerprint", teacher_fingerprint, what, whose, TEACHER)


def check_vocabulary_map(vocabulary_map: ShardReader, windows: ShardReader, targets: ShardReader) -> None:
    """Refuse a map between other vocabularies than those of the student's windows and of the shards."""
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
