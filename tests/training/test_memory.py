"""What replay and the text's loss hold at once, in counted bytes, at the real pair's sizes (no tensor has content)."""

import pytest
import torch
from counted_memory import CountedMemory

from moe_distill.batches.batch import HiddenRuns
from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.registry import total_of
from moe_distill.losses.softmax import BLOCK_VALUES
from moe_distill.losses.text_loss import Text, text_loss
from moe_distill.replay.block import TeacherHead
from moe_distill.replay.head import HeadDescription
from moe_distill.replay.router_rule import RouterRule
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.stretches import Stretch
from moe_distill.training.routing import RouterSettings, read_gate, route, routed_state_terms
from moe_distill.training.student import Heads

WINDOWS, LENGTH, K, TAIL_SAMPLES = 4, 384, 64, 32
EXPERTS, TEACHER_SIZE, EXPERT_SIZE, TEACHER_VOCABULARY = 3, 1024, 3072, 151_936
STUDENT_SIZE, STUDENT_ROWS = 576, 49_152
CHUNK_TOKENS = 512  # profiles/p100.yaml
LIMIT = 1.5 * 2**30
LOGIT_BLOCKS = 4 * 4 * BLOCK_VALUES["cpu"]  # bytes of what a softmax makes of some rows at once


def test_bytes_are_counted_while_tensors_live() -> None:
    with CountedMemory() as memory:
        first = torch.empty(1000, device="meta")
        view = first[10:]
        second = (first + 1).sum()
        del first
        assert memory.live == 4004, "a view keeps its storage; the sum's argument is gone"
        del view, second
        assert (memory.live, memory.peak, memory.largest) == (0, 8004, 4000)
        free = torch.empty(1000, device="meta", requires_grad=True)
        total = (2 * free).exp().sum()
        assert memory.live == 8004, "autograd keeps what exp gave"
        del total
        assert memory.live == 4000


def real_head() -> TeacherHead:
    shapes = {
        "final_norm": (TEACHER_SIZE,),
        "output": (TEACHER_VOCABULARY, TEACHER_SIZE),
        "moe_norm": (TEACHER_SIZE,),
        "gate": (EXPERTS, TEACHER_SIZE),
        "gate_up": (EXPERTS, 2 * EXPERT_SIZE, TEACHER_SIZE),
        "down": (EXPERTS, TEACHER_SIZE, EXPERT_SIZE),
    }
    description = HeadDescription(
        teacher_fingerprint="",
        num_experts=EXPERTS,
        router=RouterRule(score="softmax", experts_per_token=1, normalizes=True),
        moe_norm_epsilon=1e-6,
        final_norm_epsilon=1e-6,
    )
    return TeacherHead(description, {name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()})


def real_runs() -> HiddenRuns:
    """Four windows of 384 positions, every one aligned and with teacher states."""
    n = WINDOWS * LENGTH
    places = torch.empty(n, dtype=torch.int64)
    return HiddenRuns(
        places_WP=places.view(WINDOWS, LENGTH),
        mask_WP=torch.empty(WINDOWS, LENGTH, dtype=torch.bool),
        filled_N=places,
        states_WPST=torch.empty(WINDOWS, LENGTH, 2, TEACHER_SIZE),
        moe_input_WPT=torch.empty(WINDOWS, LENGTH, TEACHER_SIZE),
        router_logits_NE=torch.empty(n, EXPERTS),
        gate_noise_NE=torch.empty(n, EXPERTS),
    )


def test_replay_of_a_real_step_fits_in_one_and_a_half_gib_beyond_the_student() -> None:
    with torch.device("meta"):
        student_WPD = torch.empty(WINDOWS, LENGTH, STUDENT_SIZE, requires_grad=True)
        with CountedMemory() as memory:
            head, runs = real_head(), real_runs()
            heads = Heads([15, 30], STUDENT_SIZE, TEACHER_SIZE, EXPERTS).to("meta")
            resident = memory.live
            settings = RouterSettings(1.0, EXPERTS, 0.0)
            routed_WPT = route(heads, head, read_gate(student_WPD, runs, settings), runs, settings)
            weights = {"router_feature": 1.0, "router_attention": 1.0}
            terms = routed_state_terms(heads, routed_WPT, student_WPD, runs, weights, WINDOWS * LENGTH)
            total_of(terms).backward()
    assert student_WPD.grad is not None
    output_matrix = TEACHER_VOCABULARY * TEACHER_SIZE * 2
    assert resident > output_matrix + EXPERTS * 3 * TEACHER_SIZE * EXPERT_SIZE * 2, "the head is counted"
    assert memory.peak <= LIMIT
    assert memory.largest == output_matrix, "and no copy of it in fp32"


def test_logits_are_held_a_stretch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward pass of the text's loss, sampled targets at T = 1 as in the real run."""
    monkeypatch.setitem(BLOCK_VALUES, "meta", BLOCK_VALUES["cpu"])
    n, entries, samples = WINDOWS * LENGTH, K, TAIL_SAMPLES
    with torch.device("meta"), CountedMemory() as memory:
        hidden_ND = torch.empty(n, STUDENT_SIZE, requires_grad=True)
        weight_VD = torch.empty(STUDENT_ROWS, STUDENT_SIZE, requires_grad=True)
        target = SparseTarget(
            temperature=1.0,
            has_target_N=torch.empty(n, dtype=torch.bool),
            has_bucket_N=torch.empty(n, dtype=torch.bool),
            residual_N=torch.empty(n),
            listed_mass_N=torch.empty(n),
            entry_positions_Z=torch.empty(n * entries, dtype=torch.int32),
            entry_ids_Z=torch.empty(n * entries, dtype=torch.int32),
            entry_probs_Z=torch.empty(n * entries),
            sample_positions_Y=torch.empty(n * samples, dtype=torch.int32),
            sample_ids_Y=torch.empty(n * samples, dtype=torch.int32),
            sample_probs_Y=torch.empty(n * samples),
        )
        cut = tuple(
            Stretch(
                start,
                start + CHUNK_TOKENS,
                (entries * start, entries * (start + CHUNK_TOKENS)),
                (samples * start, samples * (start + CHUNK_TOKENS)),
            )
            for start in range(0, n, CHUNK_TOKENS)
        )
        text = Text(torch.empty(n, dtype=torch.int64), target, cut)
        resident = memory.live
        text_loss(hidden_ND, OutputHead(weight_VD), text, 0.9, torch.float32).loss.backward()
    matrix, stretch = STUDENT_ROWS * STUDENT_SIZE * 4, CHUNK_TOKENS * STUDENT_ROWS * 4
    assert memory.largest == max(matrix, stretch)
    assert memory.peak - resident < 1.2 * (matrix + stretch) + LOGIT_BLOCKS, "one gradient, one stretch of logits"
