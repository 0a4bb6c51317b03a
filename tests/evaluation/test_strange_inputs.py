"""Windows, shards and students of different runs: neither the evaluation nor the teacher's lead is measured of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe_distill.errors import DataError
from moe_distill.evaluation.evaluate import EvaluationInputs, evaluate
from moe_distill.evaluation.teacher_lead import measure_lead
from moe_distill.shards.window_store import TEACHER_WINDOWS, WindowStore
from tests.chain import Chain
from tests.shards.forge import forge_column, forge_metadata

CPU = torch.device("cpu")


@pytest.fixture
def copied(chain: Chain, tmp_path: Path) -> Chain:
    return chain.copy(tmp_path / "chain")


def evaluated(chain: Chain) -> object:
    student = chain.folder / "models/student_init"
    inputs = EvaluationInputs(chain.folder / "data/windows", chain.targets, student, student, None, student)
    return evaluate(inputs, chain.params.profile.evaluate, CPU)


def lead(chain: Chain) -> object:
    return measure_lead(chain.folder / "data/windows", chain.targets, chain.folder / "models/student_init", 8, CPU)


MEASURES = pytest.mark.parametrize("measure", [evaluated, lead])
Measure = Callable[[Chain], object]


@MEASURES
def test_shards_of_other_teacher_windows_are_refused(copied: Chain, measure: Measure) -> None:
    forge_metadata(copied.windows / "validation", teacher_windows="others")
    with pytest.raises(DataError, match="points at others"):
        measure(copied)


@MEASURES
def test_a_student_with_another_tokenizer_is_refused(copied: Chain, measure: Measure) -> None:
    with (copied.folder / "models/student_init/tokenizer.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(DataError, match="was made with tokenizer"):
        measure(copied)


def test_a_map_of_another_tokenizer_is_refused(copied: Chain) -> None:
    forge_metadata(copied.windows / "vocabulary_map", student_tokenizer="other")
    with pytest.raises(DataError, match="maps student tokenizer other"):
        evaluated(copied)


def test_a_teacher_whose_windows_stand_one_byte_further_is_refused(copied: Chain) -> None:
    """They are as long as before, so the bytes of all windows say nothing."""
    for field in ("byte_starts", "byte_ends"):
        forge_column(copied.folder / "data/windows/teacher/validation", 0, field, lambda column: column[0].add_(1))
    with pytest.raises(DataError, match="stands at byte"):
        evaluated(copied)


@MEASURES
@pytest.mark.parametrize("more", [1, -1])
def test_a_teacher_that_has_read_a_byte_more_or_less_is_refused(copied: Chain, measure: Measure, more: int) -> None:
    """The last token of a window becomes one of other bytes: all tokens begin where they began."""
    folder = copied.folder / "data/windows/teacher/validation"
    windows = WindowStore(folder, TEACHER_WINDOWS)
    last, n_bytes = windows.span(0).stop - 1, windows.byte_counts.sum()
    length = windows.token_bytes[windows.reader.column("token_ids", 0)[last]]
    other = int((windows.token_bytes == length + more).nonzero()[0])
    forge_column(folder, 0, "token_ids", lambda column: column[last].fill_(other))
    forge_column(folder, 0, "byte_ends", lambda column: column[0].add_(more))
    with pytest.raises(DataError, match=f"have {n_bytes} bytes, the teacher's {n_bytes + more}"):
        measure(copied)
