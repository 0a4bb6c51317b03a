"""Models of many families through the functions of the stages, against the models' own forward pass."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from moe_distill.evaluation.measure import score
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore, model_inputs
from moe_distill.training.phases import train_router
from tests.models.families import NAMES, make_model, pages
from tests.replay.teachers import VOCABULARY
from tests.training.folders import Folders, make_folders, make_params

# Heads with a scale, a cap and a bias; routers of every rule; norms of 1 + w; no rotary positions.
TEACHERS = ("granite", "cohere", "gemma2", "gemma3_text", "phi", "gpt2", "jamba", "jetmoe")
REPLAYED = ("qwen3_moe", "mixtral", "olmoe", "qwen2_moe", "deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss")
STUDENTS = ("llama", "granite", "cohere", "gemma2", "gemma3_text", "phi", "gpt2", "qwen3_moe", "mpt")
ALL_ON = dict.fromkeys(HIDDEN_TERMS + ROUTER_TERMS, 0.05)


def own_logprobs(model: PreTrainedModel, windows: WindowStore) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all ids at each position, one window at a time, and what follows."""
    found, labels = [], []
    for number in range(len(windows)):
        inputs, targets = model_inputs(windows, range(number, number + 1))
        with torch.inference_mode():
            found.append(model(input_ids=inputs, use_cache=False).logits[0].float().log_softmax(-1))
        labels += targets
    return torch.cat(found), torch.cat(labels)


def column(reader: ShardReader, name: str) -> Tensor:
    return torch.cat(list(reader.columns(name)))


def test_the_tables_of_families_are_what_they_do() -> None:
    for page, text in pages():
        assert page.read_text(encoding="utf-8") == text, "run: python -m tests.models.families"


@pytest.mark.parametrize("family", [*TEACHERS, *REPLAYED])
def test_cached_logprobs_are_the_teachers_own(family: str, tmp_path: Path) -> None:
    teacher = make_model(family, VOCABULARY)
    folders = make_folders(tmp_path, teacher)
    reader = open_targets(folders.root / "targets/validation")
    truth, labels = own_logprobs(teacher, WindowStore(folders.root / "teacher_windows/validation", TEACHER_WINDOWS))
    assert float((truth.max(-1).values - truth.min(-1).values).median()) > 2.0, "a flat model tests nothing"
    own = truth.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(column(reader, "target_logprob"), own, atol=1e-4, rtol=0)
    kept = truth.gather(1, column(reader, "topk_ids").long())
    torch.testing.assert_close(column(reader, "topk_logprobs").float(), kept, atol=2e-3, rtol=2**-10)
    assert ("router_logits" in reader.index.fields) is (family in REPLAYED)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("families"), make_model("qwen3_moe", VOCABULARY))


@pytest.mark.parametrize("family", STUDENTS)
def test_the_trained_student_is_the_exported_one(family: str, folders: Folders, tmp_path: Path) -> None:
    """What training and evaluation say of it is what its own forward pass gives once it is loaded again."""
    student = make_model(family, VOCABULARY, seed=1)
    inputs = folders.inputs
    shutil.copytree(inputs.student, tmp_path / "student")
    student.save_pretrained(tmp_path / "student")
    inputs = type(inputs)(inputs.windows, inputs.targets, tmp_path / "student", inputs.teacher_head, None)
    outputs = Folders(tmp_path).outputs("trained")
    params = make_params(losses=ALL_ON, max_steps=4, validate_every=2)
    result = train_router(params, inputs, outputs)
    windows = WindowStore(folders.root / "windows/validation", STUDENT_WINDOWS)
    exported = AutoModelForCausalLM.from_pretrained(outputs.student, dtype=torch.float32).eval()
    logprobs, labels = own_logprobs(exported, windows)
    nll = -float(logprobs.gather(1, labels[:, None]).double().sum())
    own = nll / math.log(2) / int(windows.byte_counts.sum())
    assert result.final.bits_per_byte == pytest.approx(own, rel=1e-5)
    assert score(exported, windows, 4).bits_per_byte == pytest.approx(own, rel=1e-6)
    untrained, _ = own_logprobs(student, windows)
    moved = float((logprobs - untrained).abs().max())
    assert moved > 1e-3, "nothing was trained"


def test_every_family_of_these_tests_is_in_the_table() -> None:
    assert {*TEACHERS, *REPLAYED, *STUDENTS} <= NAMES.keys()
