"""The whole measurement, against one window at a time through the plain forward pass."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from moe_distill.evaluation import measure as module
from moe_distill.evaluation.evaluate import AGREED_WITH, source_metrics
from moe_distill.evaluation.measure import Comparison, Score, compare, score
from moe_distill.evaluation.metrics import bits_per_byte, calibration_sums
from moe_distill.shards.teacher_nll import teacher_nll
from moe_distill.shards.window_store import model_inputs
from moe_distill.targets.teacher_rows import read_rows
from moe_distill.targets.token_shares import rule_map
from moe_distill.targets.window_targets import WindowTargets
from tests.stores import (
    BYTES,
    DOCUMENTS,
    PREFIX,
    TEACHER_DOCUMENTS,
    TEACHER_TOKENS,
    TOKENS,
    Stores,
    make_model,
)
from tests.targets.reference import DenseTarget, bucketed_kl, entries_of, target_of_all


def scored(stores: Stores, dtype: torch.dtype = torch.float32, batch_windows: int = 2) -> Score:
    return score(torch.nn.Module.to(make_model(), dtype), stores.student, batch_windows)


def compared(stores: Stores, dtype: torch.dtype = torch.float32, batch_windows: int = 2) -> Comparison:
    targets = WindowTargets(stores.student, stores.targets, rule_map(stores.student_ids), AGREED_WITH)
    return compare(torch.nn.Module.to(make_model(), dtype), stores.student, targets, batch_windows)


@dataclass
class Plain:
    nll_of_windows: list[float]
    confidence: list[float]
    correct: list[bool]
    positions: int
    top1: float
    top5: float
    kl: float

    @property
    def nll(self) -> float:
        return sum(self.nll_of_windows)


@pytest.fixture(scope="module")
def plain(stores: Stores) -> Plain:
    """No padding, no batches, no chunks; rankings by sorting, the KL in float64."""
    model, result = make_model(), Plain([], [], [], 0, 0.0, 0.0, 0.0)
    vocabulary_map = rule_map(stores.student_ids)
    for ids, rows in zip(stores.token_ids, stores.teacher_rows, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[PREFIX, *ids[:-1]]])).logits[0]
        probs = logits.double().softmax(-1)
        result.nll_of_windows.append(0.0)
        for position, label in enumerate(ids):
            result.nll_of_windows[-1] -= float(probs[position, label].log())
            result.confidence.append(float(probs[position].max()))
            result.correct.append(int(probs[position].argmax()) == label)
            if rows[position] >= 0:
                cached = read_rows(stores.targets, torch.tensor([rows[position]]))
                entries = entries_of(target_of_all(cached, vocabulary_map, 1.0), 0)
                ranked = sorted(entries, key=lambda each, entries=entries: -entries[each])  # type: ignore[misc]
                own = logits[position].argsort(descending=True).tolist()
                result.positions += 1
                result.top1 += ranked[:1] == own[:1]
                result.top5 += len(set(ranked[:5]) & set(own[:5])) / 5
                result.kl += float(bucketed_kl(logits[position].double(), DenseTarget(entries, {}, 0.0), 1.0))
    return result


@pytest.mark.parametrize(("batch_windows", "chunk_positions"), [(1, 2048), (2, 2048), (5, 7), (99, 1)])
def test_r18_sums_equal_one_window_at_a_time(
    stores: Stores, plain: Plain, batch_windows: int, chunk_positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_POSITIONS", chunk_positions)
    student = scored(stores, batch_windows=batch_windows)
    assert (student.tokens, student.n_bytes) == (sum(TOKENS), sum(BYTES))
    assert student.nll == pytest.approx(plain.nll, rel=1e-5)
    assert student.nll_W.tolist() == pytest.approx(plain.nll_of_windows, rel=1e-5)
    found = compared(stores, batch_windows=batch_windows)
    expected = calibration_sums(torch.tensor(plain.confidence), torch.tensor(plain.correct))
    torch.testing.assert_close(found.calibration, expected, atol=1e-4, rtol=0.0)
    assert expected[0].sum() == sum(TOKENS)
    assert (found.agreement.positions, found.agreement.top1) == (plain.positions, plain.top1)
    assert found.agreement.top5 == pytest.approx(plain.top5)
    assert found.agreement.kl == pytest.approx(plain.kl, rel=1e-4)
    assert 0 < plain.top1 < plain.positions < sum(TOKENS)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("batch_windows", [1, 3])
def test_r01_any_dtype_of_the_student_measures_against_fp16_shards(
    stores: Stores, plain: Plain, dtype: torch.dtype, tolerance: float, batch_windows: int
) -> None:
    stored = {name: spec.dtype for name, spec in stores.targets.index.fields.items()}
    assert stored["topk_logprobs"] == stored["tail_logprobs"] == "float16"
    expected = bits_per_byte(plain.nll, sum(BYTES))
    assert scored(stores, dtype, batch_windows).bits_per_byte == pytest.approx(expected, abs=tolerance)
    found = compared(stores, dtype, batch_windows)
    assert found.agreement.kl / found.agreement.positions == pytest.approx(plain.kl / plain.positions, abs=tolerance)
    assert found.calibration.dtype == torch.float64


def test_r19_the_teachers_nll_is_of_the_same_documents(stores: Stores) -> None:
    expected, n_bytes, start = 0.0, 0, 0
    for number, n in enumerate(TEACHER_TOKENS):
        logprobs = stores.teacher_logits[start : start + n].double().log_softmax(-1)
        if TEACHER_DOCUMENTS[number] in DOCUMENTS:
            expected -= sum(float(logprobs[position, position]) for position in range(n))
            n_bytes += BYTES[number]
        start += n
    found, found_bytes = teacher_nll(stores.teacher, stores.targets, torch.tensor(DOCUMENTS).unique())
    assert found == pytest.approx(expected, rel=1e-5)
    assert found_bytes == n_bytes
    assert n_bytes < sum(BYTES), "document 2 is left out"


def test_of_no_documents_nothing(stores: Stores) -> None:
    assert teacher_nll(stores.teacher, stores.targets, torch.tensor([])) == (0.0, 0)


def test_r29_bits_per_byte_of_each_source_that_has_windows(stores: Stores, plain: Plain) -> None:
    """Documents 0 and 1 are of source `a`, document 3 of `b`; of source `lost` the student can spell none."""
    of_a, of_b = (slice(0, 3), slice(3, 5))
    assert source_metrics(scored(stores), stores.student) == {
        "bits_per_byte_a": pytest.approx(bits_per_byte(sum(plain.nll_of_windows[of_a]), sum(BYTES[of_a])), rel=1e-5),
        "bits_per_byte_b": pytest.approx(bits_per_byte(sum(plain.nll_of_windows[of_b]), sum(BYTES[of_b])), rel=1e-5),
    }


def test_r29_one_source_has_no_figure_of_its_own(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.student, "sources", lambda: (["a"], torch.zeros(len(TOKENS), dtype=torch.int64)))
    assert source_metrics(scored(stores), stores.student) == {}


def test_r27_speed_is_of_layers_output_matrix_and_likelihood(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the named parts of the work advance."""
    now = [0.0]

    def taking(seconds: float, function: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **keys: object) -> object:
            now[0] += seconds
            return function(*arguments, **keys)

        return run

    model = make_model()
    monkeypatch.setattr(module, "seconds_when_done", lambda _device: now[0])
    monkeypatch.setattr(module, "CHUNK_POSITIONS", 7)
    monkeypatch.setattr(model.get_decoder(), "forward", taking(1.0, model.get_decoder().forward))
    monkeypatch.setattr(F, "cross_entropy", taking(100.0, F.cross_entropy))
    monkeypatch.setattr(module, "model_inputs", taking(1e6, model_inputs))  # of reading
    batches = [TOKENS[start : start + 2] for start in range(0, len(TOKENS), 2)]
    assert score(model, stores.student, 2).seconds == len(batches) + 100.0 * sum(
        math.ceil(sum(batch) / 7) for batch in batches
    )
