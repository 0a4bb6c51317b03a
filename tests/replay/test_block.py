"""Replay against the running teacher, over random small configurations of three families."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_distill.replay.block import (
    TeacherHead,
    block_input,
    expert_outputs,
    final_hidden,
    gate_logits,
    load_teacher_head,
    replayed_logits,
    routed_hidden,
    teacher_mixture,
)
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.columns import scaled
from moe_distill.teacher.run import export_head
from tests.replay.teachers import FAMILIES, VOCABULARY, Said, certain, make_teacher, say

TEACHERS = [(family, seed) for family in FAMILIES for seed in range(4)]


def head_of(model: PreTrainedModel, folder: Path) -> TeacherHead:
    export_head(find_architecture(model), "teacher", folder)
    return load_teacher_head(folder, torch.device("cpu"))


def replay(head: TeacherHead, moe_input_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gate logits, residual stream after the block and log-probabilities under the teacher's own gate."""
    read = block_input(head, moe_input_ND)
    gate = gate_logits(head, read)
    residual = routed_hidden(moe_input_ND, expert_outputs(head, read), teacher_mixture(head, gate))
    everything = torch.arange(VOCABULARY).expand(len(residual), -1)
    return gate, residual, replayed_logits(head, residual, everything).log_softmax(-1)


def assert_equal(replayed_NV: Tensor, said: Said, absolute: float, relative: float, certain_N: Tensor) -> None:
    """Log-probabilities within the tolerance; the first token the same wherever the gap to the second exceeds it."""
    truth_NV = said.logprobs_NV
    tolerance_NV = absolute + relative * truth_NV.abs()
    assert ((replayed_NV - truth_NV).abs() <= tolerance_NV)[certain_N].all()
    first, second = truth_NV.topk(2, dim=-1).values.unbind(-1)
    clear_N = certain_N & (first - second > 2 * (absolute + relative * second.abs()))
    assert clear_N.float().mean() > 0.5
    assert torch.equal(replayed_NV.argmax(-1)[clear_N], truth_NV.argmax(-1)[clear_N])


@pytest.mark.parametrize(("family", "seed"), TEACHERS)
def test_r15_replay_from_fp32_states_is_the_running_teacher(family: str, seed: int, tmp_path: Path) -> None:
    model = make_teacher(family, seed)
    said = say(model)
    gate, residual, logprobs = replay(head_of(model, tmp_path), said.moe_input_ND)
    torch.testing.assert_close(gate, said.router_logits_NE, atol=1e-4, rtol=0)
    torch.testing.assert_close(residual, said.residual_ND, atol=1e-4, rtol=1e-5)
    assert_equal(logprobs, said, 1e-4, 0.0, torch.ones(len(gate), dtype=torch.bool))


@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("family", "seed"), TEACHERS)
def test_r15_replay_from_stored_states_is_the_running_teacher(
    family: str, seed: int, teacher_dtype: torch.dtype, tmp_path: Path
) -> None:
    """As fp16 shards hold them, of a teacher that ran in fp32 or in fp16."""
    model = make_teacher(family, seed)
    nn.Module.to(model, teacher_dtype)
    said = say(model)
    head = head_of(model, tmp_path)
    stored, scales = scaled(said.moe_input_ND)
    assert stored.dtype is torch.float16
    gate, _, logprobs = replay(head, stored.float() * scales[:, None])
    torch.testing.assert_close(gate, said.router_logits_NE, atol=1e-2, rtol=2**-9)
    assert_equal(logprobs, said, 1e-2, 2**-10, certain(gate, head))


@pytest.mark.parametrize(("family", "seed"), TEACHERS[::3])
def test_every_expert_can_be_asked(family: str, seed: int, tmp_path: Path) -> None:
    """Each expert alone, against the teacher's block with a gate that chooses this one."""
    model = make_teacher(family, seed)
    said, head = say(model), head_of(model, tmp_path)
    experts = find_architecture(model).decoder.layers[-1].get_submodule("mlp.experts")
    read = block_input(head, said.moe_input_ND)
    outputs = expert_outputs(head, read)
    assert outputs.shape == (256, head.num_experts, read.shape[1])
    for expert in range(head.num_experts):
        chosen = torch.full((256, 1), expert)
        with torch.no_grad():
            alone = experts(read, chosen, torch.ones(256, 1))
        torch.testing.assert_close(outputs[:, expert], alone, atol=1e-5, rtol=1e-5)


def test_only_the_needed_rows_of_the_output_matrix_are_touched(tmp_path: Path) -> None:
    head = head_of(make_teacher("qwen3_moe", 0), tmp_path)
    residual = torch.randn(5, len(head.tensors["final_norm"]), generator=torch.Generator().manual_seed(0))
    ids = torch.randint(VOCABULARY, (5, 3), generator=torch.Generator().manual_seed(1))
    whole = final_hidden(head, residual) @ head.tensors["output"].T
    rows = torch.full_like(head.tensors["output"], math.nan)
    rows[ids.unique()] = head.tensors["output"][ids.unique()]
    head.tensors["output"] = rows
    torch.testing.assert_close(replayed_logits(head, residual, ids), whole.gather(1, ids))
