"""The work of the `self_test` stage: both models, held against themselves before anything long is computed of them."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from moe_distill.config.profile import Windows
from moe_distill.log import log
from moe_distill.models.model_weights import count_parameters
from moe_distill.models.moe_block import has_experts
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.self_test import COMPARED, random_windows, self_test
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.replay_error import replay_error
from moe_distill.utils.device import make_runtime

SEED = 0
GPU_SHARE = 0.7  # of its free memory; the rest is for activations


def run_self_tests(windows: Windows, teacher: Path, student: Path) -> dict[str, float]:
    """Test both models in fp32, and the replay of the teacher's last block where it has experts.

    Returns:
        The metrics of metrics/self_test.json.

    Raises:
        DataError: a model is not right; see `self_test` and `load_causal_lm`.
    """
    metrics: dict[str, float] = {}
    for name, folder, length in (
        ("teacher", teacher, windows.teacher_max_length),
        ("student", student, windows.student_max_length),
    ):
        metrics |= _test(name, folder, length)
    return metrics


def _test(name: str, folder: Path, length: int) -> dict[str, float]:
    model = load_causal_lm(folder, torch.float32, _device(folder))
    found = self_test(model, name, length, SEED)
    log(f"self_test: {name}: a {model.config.model_type} model; its parts give its own logits")
    metrics = {f"{name}_logit_error": found.logit_error, f"{name}_causality_error": found.causality_error}
    return metrics | _replay(model, min(length, COMPARED)) if name == "teacher" else metrics


def _device(folder: Path) -> torch.device:
    """The GPU if it can hold the model in fp32; a teacher in fp16 may fill it by half already."""
    device = make_runtime("fp32").device
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if GPU_SHARE * free < 4 * count_parameters(folder):
            return torch.device("cpu")
    return device


def _replay(model: PreTrainedModel, length: int) -> dict[str, float]:
    """Whether the student-aware router will have experts to mix."""
    architecture = find_architecture(model)
    if isinstance(architecture.moe, str):
        if has_experts(model):
            log(f"self_test: warning: {architecture.moe}; the student-aware router will be off, all else runs")
        return {"router_replayable": 0.0}
    ids_BL = random_windows(architecture.decoder, length, SEED)
    excess, gate_error = replay_error(model, architecture, ids_BL)
    if not (excess <= 1.0 and gate_error <= 1e-3):
        log(
            f"self_test: warning: log-probabilities after the replayed block differ by {excess:.3g} times what is "
            f"allowed, router logits by {gate_error:.2g}; the student-aware router may be off, all else runs"
        )
        return {"router_replayable": 0.0, "replay_error": excess, "gate_error": gate_error}
    return {"router_replayable": 1.0, "replay_error": excess, "gate_error": gate_error}
