"""A small student, a teacher head of random weights, and batches with targets and runs of states."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moe_distill.config.params import ExperimentParams
from moe_distill.config.profile import Train
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.replay.block import TeacherHead
from moe_distill.replay.head import HeadDescription
from moe_distill.shards.teacher_store import TeacherRows, teacher_rows
from moe_distill.targets.inside import InsideText, inside_places
from moe_distill.targets.token_shares import rule_map
from moe_distill.teacher.sparsify import sparsify
from moe_distill.training.batch import Batch, Chunks, HiddenRuns, Inside
from moe_distill.training.objective import Student
from moe_distill.training.student import make_heads
from tests.stores import stores

__all__ = ["stores"]

STUDENT_VOCABULARY, TEACHER_VOCABULARY, TEACHER_SIZE, EXPERTS, LAYERS, K, M = 60, 90, 20, 3, 2, 8, 4


def make_batch(seed: int, lengths: list[int], with_runs: bool = True) -> Batch:
    """Windows of the given lengths, up to 12; two positions of three have a target and a state.

    Chunks have three tokens; the first three belong to none.
    """
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    places = torch.cat([torch.arange(length) + number * longest for number, length in enumerate(lengths)])
    n_tokens = len(places)
    aligned = torch.arange(n_tokens)[torch.arange(n_tokens) % 3 != 0]
    logits = 3 * torch.randn(len(aligned), TEACHER_VOCABULARY, generator=generator)
    uniforms = torch.rand(len(aligned), generator=generator)
    records = sparsify(logits, torch.zeros(len(aligned), dtype=torch.int64), K, M, uniforms)
    inside = torch.arange(3, n_tokens, 3)
    runs = [places[aligned][places[aligned] // longest == number] for number in range(len(lengths))]
    mask = torch.stack([torch.arange(8) < len(run) for run in runs])
    return Batch(
        input_ids_BL=torch.randint(STUDENT_VOCABULARY, (len(lengths), longest), generator=generator),
        places_N=places,
        labels_N=torch.randint(STUDENT_VOCABULARY, (n_tokens,), generator=generator),
        aligned_A=aligned,
        next_teacher_ids_A=torch.zeros_like(aligned),  # as the records say
        rows=teacher_rows(vars(records), TEACHER_VOCABULARY - K),
        inside=Inside(inside, *random_inside(len(inside), generator)),
        runs=HiddenRuns(
            windows_W=1000 * seed + torch.arange(len(lengths)),
            places_WR=torch.stack([torch.nn.functional.pad(run, (0, 8 - len(run))) for run in runs]),
            mask_WR=mask,
            filled_N=mask.flatten().nonzero().squeeze(1),
            states_WRSD=torch.randn(len(lengths), 8, LAYERS, TEACHER_SIZE, generator=generator) * mask[..., None, None],
            moe_input_WRD=torch.randn(len(lengths), 8, TEACHER_SIZE, generator=generator) * mask[..., None],
        )
        if with_runs
        else None,
        chunks=Chunks(torch.arange(n_tokens) // 3 - 1, -2 * torch.rand((n_tokens + 2) // 3 - 1, generator=generator)),
        n_bytes=3 * n_tokens,
    )


def random_inside(n: int, generator: torch.Generator) -> tuple[TeacherRows, InsideText]:
    """Rows that are nearly sure of tokens 0 to 9, all of which begin with the same bytes (`student`)."""
    logits = torch.randn(n, TEACHER_VOCABULARY, generator=generator)
    logits[:, :10] += 8
    next_ids = torch.arange(n) % 10
    records = sparsify(logits, next_ids, K, M, torch.rand(n, generator=generator))
    student_ids = torch.randint(STUDENT_VOCABULARY, (n,), generator=generator)
    return teacher_rows(vars(records), TEACHER_VOCABULARY - K), InsideText(
        next_ids, torch.ones_like(next_ids), student_ids
    )


@pytest.fixture
def teacher_head() -> TeacherHead:
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    description = HeadDescription(
        teacher_fingerprint="t",
        num_experts=EXPERTS,
        experts_per_token=1,
        normalizes_topk=True,
        activation="silu",
        norm_epsilon=1e-6,
        weights_sha256="",
    )
    tensors = {
        "final_norm": torch.ones(TEACHER_SIZE),
        "output": random(TEACHER_VOCABULARY, TEACHER_SIZE),
        "moe_norm": torch.ones(TEACHER_SIZE),
        "gate": random(EXPERTS, TEACHER_SIZE),
        "gate_up": random(EXPERTS, 16, TEACHER_SIZE),
        "down": random(EXPERTS, TEACHER_SIZE, 8),
    }
    return TeacherHead(description, tensors)


@pytest.fixture
def student(teacher_head: TeacherHead) -> Student:
    config = LlamaConfig(
        vocab_size=STUDENT_VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    student_ids = torch.arange(TEACHER_VOCABULARY) % (STUDENT_VOCABULARY - 5)
    student_ids[-3:] = -1
    heads = make_heads([2, 3], 16, TEACHER_SIZE, EXPERTS, seed=0)
    counts = torch.full((TEACHER_VOCABULARY,), 2)  # every token has two bytes, the first one that of its group
    prefixes = torch.stack([torch.zeros(TEACHER_VOCABULARY), 1 + torch.arange(TEACHER_VOCABULARY) // 10], dim=1)
    next_ids, vocabulary_map = torch.arange(2 * TEACHER_VOCABULARY) % STUDENT_VOCABULARY, rule_map(student_ids)
    places = inside_places(counts, prefixes.long().flatten(), next_ids, vocabulary_map.frequencies)
    return Student(model, heads, teacher_head, vocabulary_map, places)


@pytest.fixture
def experiment() -> ExperimentParams:
    return ExperimentParams.model_validate(
        {
            "profile": "test",
            "seed": 0,
            "precision": "fp32",
            "temperature": 2.0,
            "kd_weight": 0.7,
            "kd_order": "temper_then_map",
            "kd_tail": "sampled",
            "chunk_temperature": 1.0,
            "balance": "fixed",
            "losses": dict.fromkeys(("kd_inside", "chunk", *HIDDEN_TERMS, *ROUTER_TERMS), 0.1),
            "curriculum": {"phase1_share": 0.1, "curriculum_share": 0.8},
            "router": {
                "temperature_start": 2.0,
                "temperature_end": 1.0,
                "experts_start": 1,
                "experts_end": 3,
                "noise": 0.0,
            },
            "early_stopping": {"patience": 2, "min_delta": 0.01, "warmup_steps": 0},
        }
    )


@pytest.fixture
def train() -> Train:
    return Train(
        max_steps=100,
        batch_windows=4,
        micro_batch_windows=4,
        learning_rate=1e-3,
        router_learning_rate=2e-3,
        warmup_fraction=0.1,
        final_learning_rate_fraction=0.1,
        weight_decay=0.1,
        gradient_clip=1.0,
        chunk_tokens=7,
        log_every=10,
        validate_every=20,
        validation_windows=4,
        checkpoint_every=20,
        max_consecutive_nonfinite=3,
    )
