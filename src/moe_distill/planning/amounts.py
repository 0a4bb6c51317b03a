"""How much there is to do: windows, tokens and bytes, counted where they lie on disk, else from the profile's limits.

What is not known yet is NaN, so that whatever follows from it is not known either.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from moe_distill.config.corpus_keys import Files, Hub
from moe_distill.config.model_keys import HubModel
from moe_distill.config.params import Params
from moe_distill.corpus.corpus_disk_use import corpus_bytes
from moe_distill.errors import DataError
from moe_distill.planning.devices import Device
from moe_distill.planning.model_configs import STUDENT, TEACHER, is_current
from moe_distill.planning.model_work import ModelWork
from moe_distill.shards.format import row_bytes
from moe_distill.shards.window_store import SPLITS, STUDENT_FIELDS, TEACHER_FIELDS, WindowStore
from moe_distill.teacher.capture import capture_fields
from moe_distill.utils.device import resolve_precision

UNKNOWN = math.nan
DEFAULT_DOCUMENT = 16384  # bytes of a document of the hub whose rows are not joined


@dataclass(frozen=True)
class Amounts:
    """Windows of each split, and the mean tokens of one."""

    teacher_windows: Mapping[str, float]
    student_windows: Mapping[str, float]
    teacher_length: float
    student_length: float

    @property
    def teacher_tokens(self) -> float:
        """Of both splits."""
        return sum(self.teacher_windows.values()) * self.teacher_length


@dataclass(frozen=True)
class StoredBytes:
    """Bytes of what stages leave on disk."""

    corpus: float
    teacher: float
    student: float
    windows: float
    shards: float
    head: float


def count_amounts(params: Params, teacher: Mapping[str, WindowStore], student: Mapping[str, WindowStore]) -> Amounts:
    """What `tokenize` has cut, where it has; else as many full windows as the profile allows."""
    windows = params.profile.windows
    if teacher and student:
        return Amounts(
            {split: len(store) for split, store in teacher.items()},
            {split: len(store) for split, store in student.items()},
            *(_mean_length(stores) for stores in (teacher, student)),
        )
    limits = (windows.max_train_windows, windows.max_validation_windows)
    most = {split: UNKNOWN if limit is None else limit for split, limit in zip(SPLITS, limits, strict=True)}
    return Amounts(most, most, windows.teacher_max_length - 1, windows.student_max_length - 1)


def _mean_length(stores: Mapping[str, WindowStore]) -> float:
    tokens = sum(int(store.token_counts.sum()) for store in stores.values())
    return tokens / sum(len(store) for store in stores.values())


def count_bytes(
    params: Params,
    amounts: Amounts,
    teacher: tuple[ModelWork, PreTrainedConfig],
    student: tuple[ModelWork, PreTrainedConfig],
    device: Device,
) -> StoredBytes:
    """Bytes of corpus, models, windows, shards and head; of models that are here those of their files.

    Raises:
        ConfigError: the device cannot compute in the precision of the capture.
    """
    tokens = {
        "teacher": amounts.teacher_tokens,
        "student": sum(amounts.student_windows.values()) * amounts.student_length,
    }
    of_windows = row_bytes(TEACHER_FIELDS)["tokens"] * tokens["teacher"]
    of_windows += row_bytes(STUDENT_FIELDS)["tokens"] * tokens["student"]
    item = resolve_precision(params.profile.teacher.precision, device.capability).itemsize
    return StoredBytes(
        corpus=_corpus(params),
        teacher=_model(TEACHER, *teacher),
        student=_model(STUDENT, *student),
        windows=of_windows,
        shards=row_share(params, teacher[0]) * amounts.teacher_tokens,
        head=item * (teacher[0].head + teacher[0].last_block) if teacher[0].experts else 0.0,
    )


def row_share(params: Params, teacher: ModelWork) -> float:
    """Bytes of shards for a teacher position, with its share of the states where every window keeps its run."""
    capture, length = params.profile.teacher, params.profile.windows.teacher_max_length - 1
    each = row_bytes(capture_fields(capture, teacher.hidden_size, teacher.experts))
    return each["positions"] + each["hidden"] * capture.hidden_fraction * capture.hidden_run / length


def download_bytes(params: Params, stored: StoredBytes) -> float:
    """Bytes of models that come from the hub, and so lie in its cache too."""
    models = params.profile.models
    sizes = ((models.teacher, stored.teacher), (models.student, stored.student))
    return sum(size for model, size in sizes if isinstance(model, HubModel))


def _corpus(params: Params) -> float:
    """Bytes of both splits: of files by a sample, of the hub's text what limits allow, uncompressed.

    The documentation of Python is left out: it is a megabyte, and takes seconds to estimate.
    """
    corpus = params.profile.corpus
    of_hub = [source for source in corpus.sources if isinstance(source, Hub)]
    allowed = sum(source.max_documents * (source.join_rows_to_characters or DEFAULT_DOCUMENT) for source in of_hub)
    try:
        of_files = [source for source in corpus.sources if isinstance(source, Files)]
        return allowed + corpus_bytes(corpus.model_copy(update={"sources": of_files}))
    except DataError:  # their files are elsewhere; all else can be told
        return allowed


def _model(folder: Path, work: ModelWork, config: PreTrainedConfig) -> float:
    if (folder / "config.json").is_file() and is_current(folder):
        return float(sum(path.stat().st_size for path in folder.glob("*.safetensors")))
    dtype = getattr(config, "dtype", None)
    return float(work.parameters * (dtype.itemsize if dtype is not None else 4))
