"""The `tokenize` stage's work: both splits, the vocabulary map, and what they came to."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from moe_distill.alignment.encode import Encoder, make_encoder
from moe_distill.alignment.limited_fraction import limited_fraction
from moe_distill.alignment.map_cache import write_vocabulary_map
from moe_distill.alignment.tokenize import tokenize_split
from moe_distill.alignment.tokenizer_rules import told_differences
from moe_distill.alignment.vocabulary_map import exact_vocabulary_share
from moe_distill.alignment.window_limits import PURPOSE, SplitCounts, WindowLimits
from moe_distill.alignment.windows_disk_use import windows_bytes
from moe_distill.config.profile import Windows
from moe_distill.corpus.documents import Document, hash_fraction, read_documents
from moe_distill.log import log, progress
from moe_distill.models.prefix_token import prefix_token_id, prefix_warnings, show
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.shards.provenance import tokenizer_fingerprint
from moe_distill.shards.window_store import SPLITS
from moe_distill.utils.disk_space import require_space
from moe_distill.utils.files import fingerprint, sha256_file, write_json

SHOWN_SKIPS = 5
SKIPPED_NAME = "skipped.json"  # every skipped document of each split: which, why, and at which byte


def write_windows(params: Windows, corpus: Path, teacher: Path, student: Path, output: Path) -> dict[str, float]:
    """Write `teacher/{train,validation}`, `student/{train,validation,vocabulary_map}` and `student/skipped.json`.

    Args:
        corpus: folder with train.parquet and validation.parquet.
        teacher, student: model folders; only their tokenizers and configurations are read.

    Returns:
        The metrics of metrics/tokenize.json.
    """
    encoders = open_encoder(teacher, "teacher"), open_encoder(student, "student")
    output.mkdir(parents=True, exist_ok=True)
    needed = sum(estimated_bytes(split, params, corpus, encoders) for split in SPLITS)
    require_space(output, needed, "the windows", "lower `windows.train_fraction` or `windows.max_train_windows`")
    split_counts_of = {
        split: _write_split(split, params, corpus, teacher, student, encoders, output) for split in SPLITS
    }
    write_vocabulary_map(encoders, teacher, student, output / "student/vocabulary_map")
    write_json(
        output / "student" / SKIPPED_NAME,
        {split: split_counts.skipped for split, split_counts in split_counts_of.items()},
    )
    for split, split_counts in split_counts_of.items():
        for line in split_counts.skipped[:SHOWN_SKIPS]:
            log(f"tokenize: skipped {corpus / split}.parquet: {line}")
        if len(split_counts.skipped) > SHOWN_SKIPS:
            more = len(split_counts.skipped) - SHOWN_SKIPS
            log(f"tokenize: skipped {more} more documents of {corpus / split}.parquet: all in student/{SKIPPED_NAME}")
    return _metrics(split_counts_of["train"], split_counts_of["validation"]) | {
        "exact_vocabulary_share": exact_vocabulary_share(*encoders),
        "teacher_prefix_id": float(encoders[0].prefix_id),
        "student_prefix_id": float(encoders[1].prefix_id),
    }


def estimated_bytes(split: str, params: Windows, corpus: Path, encoders: tuple[Encoder, Encoder]) -> int:
    """What the windows of a split will take on disk."""
    path = corpus / f"{split}.parquet"
    fraction = params.train_fraction if split == "train" else 1.0
    max_windows = params.max_train_windows if split == "train" else params.max_validation_windows
    text_bytes = sum(len(document.text.encode()) for document in _drawn(path, fraction))
    return windows_bytes(_drawn(path, fraction), text_bytes, encoders, params.teacher_max_length, max_windows)


def _drawn(path: Path, fraction: float) -> Iterator[Document]:
    for group in read_documents(path):
        yield from (document for document in group if hash_fraction(document.document_id, PURPOSE) < fraction)


def _chosen(path: Path, fraction: float, label: str) -> Iterator[list[Document]]:
    """The documents that windows are cut of, in groups, with a bar."""
    with progress(pq.read_metadata(path).num_rows, label, "documents") as advance:
        for group in read_documents(path):
            yield [document for document in group if hash_fraction(document.document_id, PURPOSE) < fraction]
            advance(len(group), 0)


def open_encoder(folder: Path, name: str) -> Encoder:
    """The encoder of a model folder; says what is unusual about its tokenizer, and with which token windows begin."""
    tokenizer = load_tokenizer(folder)
    prefix_id = prefix_token_id(folder, tokenizer)
    encoder = make_encoder(tokenizer, prefix_id, name)
    log(f"tokenize: every window of the {name} begins with {show(tokenizer, prefix_id)}")
    for clause in prefix_warnings(folder, tokenizer):
        log(f"tokenize: warning: prefix token {show(tokenizer, prefix_id)} of the {name}: {clause}")
    for clause in told_differences(tokenizer, encoder.tokenizer, name):
        log(f"tokenize: tokenizer of the {name}: {clause}")
    return encoder


def _write_split(
    split: str,
    params: Windows,
    corpus: Path,
    teacher: Path,
    student: Path,
    encoders: tuple[Encoder, Encoder],
    output: Path,
) -> SplitCounts:
    path = corpus / f"{split}.parquet"
    fraction = params.train_fraction if split == "train" else 1.0
    max_windows = params.max_train_windows if split == "train" else params.max_validation_windows
    limits = WindowLimits(params.teacher_max_length, params.student_max_length, params.shard_tokens)
    if max_windows is not None:
        fraction, cut = limited_fraction(path, fraction, max_windows, encoders[0], limits)
        limits = replace(limits, cut=cut)
    tokenizers = tokenizer_fingerprint(teacher), tokenizer_fingerprint(student)
    teacher_key = fingerprint(
        {
            "corpus": sha256_file(path),
            "fraction": fraction,
            "cut": None if limits.cut is None else limits.cut.windows,
            "tokenizer": tokenizers[0],
            "max_length": params.teacher_max_length,
        }
    )
    student_key = fingerprint(
        {
            "teacher_windows": teacher_key,
            "tokenizer": tokenizers[1],
            "max_length": params.student_max_length,
        }
    )
    documents = _chosen(path, fraction, f"tokenize: {split}")
    outputs = output / "teacher" / split, output / "student" / split
    return tokenize_split(documents, *encoders, limits, *outputs, teacher_key, student_key, tokenizers)


def _metrics(train: SplitCounts, validation: SplitCounts) -> dict[str, float]:
    both = (train, validation)
    student_tokens = sum(split_counts.student_tokens for split_counts in both)
    aligned = sum(split_counts.aligned for split_counts in both)
    return {
        "windows": float(sum(split_counts.windows for split_counts in both)),
        "student_windows": float(sum(split_counts.student_windows for split_counts in both)),
        "train_tokens_student": float(train.student_tokens),
        "train_tokens_teacher": float(train.teacher_tokens),
        "aligned_position_coverage": aligned / student_tokens,
        "one_to_one_coverage": sum(split_counts.one_to_one for split_counts in both) / student_tokens,
        "shorter_context_row_share": sum(split_counts.shorter_context for split_counts in both) / max(aligned, 1),
        "overhanging_row_share": sum(split_counts.overhanging for split_counts in both) / max(aligned, 1),
        "skipped_documents": float(sum(len(split_counts.skipped) for split_counts in both)),
        "forced_cuts": float(sum(split_counts.forced_cuts for split_counts in both)),
    }
