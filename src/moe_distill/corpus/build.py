"""Build the corpus: read the sources, normalise to NFC, remove duplicates, split into training and validation.

One pass. Memory holds one row group for each split, and 16 bytes for each document.
"""

import unicodedata
from collections import Counter
from pathlib import Path

from moe_distill.config.corpus_keys import Corpus, Files, Source, source_name
from moe_distill.corpus.corpus_disk_use import corpus_bytes
from moe_distill.corpus.documents import Document, document_id, is_kept, is_validation
from moe_distill.corpus.local_files import left_out
from moe_distill.corpus.parquet_writer import DocumentWriter, open_writer
from moe_distill.corpus.raw import Reason, Skip, SkipLog
from moe_distill.corpus.resize import MAX_CHARACTERS, divide
from moe_distill.corpus.sources import read_source
from moe_distill.errors import DataError
from moe_distill.log import log
from moe_distill.utils.disk_space import require_space
from moe_distill.utils.files import write_json

METRICS = (
    "train_documents",
    "train_bytes",
    "validation_documents",
    "validation_bytes",
    "skipped_documents",
    "duplicate_documents",
    "divided_documents",
)


def build_corpus(params: Corpus, output: Path) -> dict[str, float]:
    """Write `train.parquet`, `validation.parquet` and `skipped.json` to `output`.

    Returns:
        Counts of documents and of UTF-8 bytes under the names of `METRICS`, in all, and for each source as
        `<source>_<metric>`. A document of more than `MAX_CHARACTERS` counts as its pieces. Training documents that a
        source's weight leaves out are not counted.

    Raises:
        DataError: a source is unusable, or a split would be empty.
        ResourceError: the disk cannot take the corpus.
    """
    names = [source_name(source) for source in params.sources]
    output.mkdir(parents=True, exist_ok=True)
    require_space(output, corpus_bytes(params), "the corpus", "lower `max_documents` or `weight` in corpus.sources")
    skips = SkipLog(names)
    seen: set[bytes] = set()
    counts: dict[str, Counter[str]] = {}
    with open_writer(output / "train.parquet") as train, open_writer(output / "validation.parquet") as validation:
        writers = {"train": train, "validation": validation}
        for name, source in zip(names, params.sources, strict=True):
            counts[name] = _add_source(name, source, params.validation_fraction, writers, seen, skips)
            _log_counts(name, counts[name])
            _log_left_out(name, source)
        write_json(output / "skipped.json", skips.to_json())
        metrics: dict[str, float] = {metric: sum(count[metric] for count in counts.values()) for metric in METRICS}
        _check_splits(metrics, skips.total())
    return metrics | {f"{name}_{metric}": count[metric] for name, count in counts.items() for metric in METRICS}


def _add_source(
    name: str,
    source: Source,
    validation_fraction: float,
    writers: dict[str, DocumentWriter],
    seen: set[bytes],
    skips: SkipLog,
) -> Counter[str]:
    """Write a source's documents, add their digests to `seen` and unusable documents to `skips`; returns counts."""
    counts: Counter[str] = Counter()
    for item in read_source(source):
        if isinstance(item, Skip):
            skips.add(name, item)
            counts["skipped_documents"] += 1
            continue
        # Qwen tokenizers normalise to NFC. Done once, here, so that both models and all byte counts agree.
        text = unicodedata.normalize("NFC", item.text)
        key = document_id(text)
        split = "validation" if is_validation(key, validation_fraction) else "train"
        if split == "train" and not is_kept(key, source.weight):
            continue  # not in `seen` either: another source may hold the same text at a higher weight
        counts["divided_documents"] += len(text) > MAX_CHARACTERS
        for piece in divide(text):  # all in one split, so that no document is in both
            document = Document(document_id(piece), name, piece)
            digest = bytes.fromhex(document.document_id[:32])
            if digest in seen:
                counts["duplicate_documents"] += 1
                continue
            seen.add(digest)
            writers[split].append(document)
            counts[f"{split}_documents"] += 1
            counts[f"{split}_bytes"] += len(piece.encode())
    return counts


def _log_counts(name: str, counts: Counter[str]) -> None:
    log(
        f"corpus: {name}: {counts['train_documents']:,} training and {counts['validation_documents']:,} validation"
        f" documents, {counts['skipped_documents']:,} skipped, {counts['duplicate_documents']:,} duplicates"
        + (f", {counts['divided_documents']:,} divided" if counts["divided_documents"] else "")
    )


def _log_left_out(name: str, source: Source) -> None:
    """A line on the files of other kinds, which are not read."""
    others = left_out(source.paths) if isinstance(source, Files) else Counter()
    if others:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(8))
        log(f"corpus: {name}: {others.total():,} files of other kinds are left out: {kinds}")


def _check_splits(metrics: dict[str, float], skipped: Counter[Reason]) -> None:
    found = ", ".join(f"{metric} {metrics[metric]}" for metric in METRICS if metric.endswith("documents"))
    found += "".join(f"; {count:,} skipped: {reason}" for reason, count in skipped.most_common(3))
    if not metrics["train_documents"]:
        fix = "add documents to corpus.sources, raise a `weight`, or lower corpus.validation_fraction"
        raise DataError("the training split is empty", found, fix)
    if not metrics["validation_documents"]:
        fix = "raise corpus.validation_fraction, or add documents to corpus.sources"
        raise DataError("the validation split is empty", found, fix)
