"""Write the vocabulary map, which is computed once for two tokenizers.

DVC empties a stage's outputs before it runs the stage again, so a copy for later runs is kept in
`.work/vocabulary_map/<key>`. The key is a fingerprint of both tokenizers, the teacher's output rows and the code that
computes the map. The copy's hash is verified before it is used.
"""

import json
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from moe_distill.alignment.bpe_merges import merges_of
from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.token_beginnings import token_beginnings
from moe_distill.alignment.vocabulary_map import vocabulary_map
from moe_distill.errors import DataError
from moe_distill.log import log
from moe_distill.shards.format import Metadata
from moe_distill.shards.provenance import tokenizer_fingerprint
from moe_distill.shards.vocabulary_store import MAP_FIELDS, VOCABULARY_MAP, read_vocabulary_map
from moe_distill.shards.writer import ShardWriter
from moe_distill.utils.files import fingerprint, fresh_folder, project_root, publish, sha256_file


def write_vocabulary_map(encoders: tuple[Encoder, Encoder], teacher: Path, student: Path, output: Path) -> None:
    """Write the store `output`, from the kept copy where there is a valid one.

    Args:
        encoders: the teacher's and the student's.
        teacher, student: their model folders.

    Raises:
        DataError: the teacher has fewer output rows than its tokenizer has ids.
    """
    output_rows = _output_rows(teacher, encoders[0])
    tokenizers = [tokenizer_fingerprint(folder) for folder in (teacher, student)]
    code = [sha256_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    kept = project_root() / ".work/vocabulary_map" / fingerprint([tokenizers, output_rows, code])
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):  # experiments in several workspaces may start together
        if not _is_valid(kept):
            student_ids = vocabulary_map(*encoders, output_rows=output_rows)
            columns = {"student_ids": student_ids} | token_beginnings(*encoders)
            tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
            metadata: Metadata = {
                "student_ids": len(encoders[1].token_bytes.table),
                "teacher_tokenizer": tokenizers[0],
                "student_tokenizer": tokenizers[1],
            }
            with fresh_folder(kept) as folder:
                writer = ShardWriter(folder, MAP_FIELDS, "teacher_ids", len(student_ids))
                writer.append(tensors | _segmentation_columns(encoders[1]))
                writer.finish(VOCABULARY_MAP, fingerprint(tokenizers), metadata)
        publish(kept, output)


def _segmentation_columns(student: Encoder) -> dict[str, torch.Tensor]:
    """What decides which of the student's tokens may follow one another: nothing where its merges are not known."""
    merges, token_bytes = merges_of(student), student.token_bytes
    tokenizer = student.tokenizer.to_str().encode() if len(merges.results) else b""
    n_ids, n_bytes = (len(token_bytes.lengths), len(token_bytes.spelling)) if tokenizer else (0, 0)
    return {
        "merge_lefts": merges.lefts.int(),
        "merge_rights": merges.rights.int(),
        "merge_results": merges.results.int(),
        "student_bytes": torch.from_numpy(token_bytes.lengths[:n_ids]).int(),
        "student_spelling": torch.from_numpy(token_bytes.spelling[:n_bytes].view(np.int8).copy()),
        "student_tokenizer": torch.from_numpy(np.frombuffer(tokenizer, np.int8).copy()),
    }


def _is_valid(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        read_vocabulary_map(folder)
    except DataError as error:
        log(f"tokenize: the kept vocabulary map is computed again: {error}")
        return False
    return True


def _output_rows(folder: Path, encoder: Encoder) -> int:
    """Rows of a model's output matrix, from its config.json.

    Raises:
        DataError: there are fewer than the tokenizer has ids.
    """
    rows = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    n_ids = len(encoder.token_bytes.table)
    if rows < n_ids:
        raise DataError(
            f"{folder} has {rows} output rows and a tokenizer of {n_ids} ids",
            "the tokenizer is another model's",
            "change `models` in the profile",
        )
    return rows
