"""A small student, a teacher head of random weights, and batches with targets and runs of states."""

from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moe_distill.batches.batch import Batch, Counts, HiddenRuns
from moe_distill.config.params import ExperimentParams
from moe_distill.config.profile import Train
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.losses.text_loss import Text
from moe_distill.replay.block import TeacherHead
from moe_distill.replay.head import HeadDescription
from moe_distill.replay.router_rule import RouterRule
from moe_distill.targets.sparse_target import NextTokens, SparseTarget, joined, sparse_target
from moe_distill.targets.stretches import stretches
from moe_distill.targets.teacher_rows import teacher_rows
from moe_distill.targets.token_shares import VocabularyMap, rule_map
from moe_distill.teacher.sparsify import sparsify
from moe_distill.training.objective import Student
from moe_distill.training.step import ValidationSet
from moe_distill.training.student import Heads, make_heads
from tests.params import fixed_params
from tests.stores import stores

__all__ = ["stores"]

STUDENT_VOCABULARY, TEACHER_VOCABULARY, TEACHER_SIZE, EXPERTS, LAYERS, K, M = 60, 90, 20, 3, 2, 8, 4
RUN, CHUNK_TOKENS = 8, 7


def make_batch(seed: int, lengths: list[int], with_runs: bool = True, with_target: bool = True) -> Batch:
    """Windows of the given lengths, up to 12; two positions of three have a target and a state."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    places = torch.cat([torch.arange(length) + number * longest for number, length in enumerate(lengths)])
    n_tokens = len(places)
    has_target = torch.arange(n_tokens) % 3 != 0
    labels = torch.randint(STUDENT_VOCABULARY, (n_tokens,), generator=generator)
    target = make_target(has_target, labels, generator)
    runs = [places[has_target][places[has_target] // longest == number] for number in range(len(lengths))]
    hidden_runs = make_runs(runs, 1000 * seed, generator)
    return Batch(
        windows=tuple(range(1000 * seed, 1000 * seed + len(lengths))),
        input_ids_BL=torch.randint(STUDENT_VOCABULARY, (len(lengths), longest), generator=generator),
        places_N=places,
        text=Text(labels, target if with_target else None, stretches(n_tokens, CHUNK_TOKENS, target)),
        runs=hidden_runs if with_runs else None,
        counts=Counts(
            tokens=n_tokens,
            with_target=int(has_target.sum()) if with_target else 0,
            hidden=len(hidden_runs.filled_N) if with_runs else 0,
            n_bytes=3 * n_tokens,
            places=len(lengths) * longest,
        ),
        dropout_seed=seed,
    )


def make_target(has_target_N: torch.Tensor, labels_N: torch.Tensor, generator: torch.Generator) -> SparseTarget:
    """Of random teacher rows, at the temperature of `experiment`."""
    n = int(has_target_N.sum())
    logits = 3 * torch.randn(n, TEACHER_VOCABULARY, generator=generator)
    next_ids = torch.randint(TEACHER_VOCABULARY, (n,), generator=generator)
    records = sparsify(logits, next_ids, K, M, torch.rand(n, generator=generator))
    rows = teacher_rows(vars(records), TEACHER_VOCABULARY - K)
    text = NextTokens(next_ids, labels_N[has_target_N])
    return sparse_target(rows, has_target_N, make_map(), 2.0, "temper_then_map", "sampled", text)


def make_map() -> VocabularyMap:
    """Three teacher ids have no student token, five student ids are of no teacher id."""
    student_ids = torch.arange(TEACHER_VOCABULARY) % (STUDENT_VOCABULARY - 5)
    student_ids[-3:] = -1
    return rule_map(student_ids)


def make_runs(runs: list[torch.Tensor], first_window: int, generator: torch.Generator) -> HiddenRuns:
    """Random states at the given places of each window; noise of the window's number alone."""
    mask_WP = torch.stack([torch.arange(RUN) < len(run) for run in runs])
    states = torch.randn(len(runs), RUN, LAYERS, TEACHER_SIZE, generator=generator)
    moe_input = torch.randn(len(runs), RUN, TEACHER_SIZE, generator=generator)
    noise = [
        torch.randn(len(run), EXPERTS, generator=torch.Generator().manual_seed(first_window + number))
        for number, run in enumerate(runs)
    ]
    return HiddenRuns(
        places_WP=torch.stack([torch.nn.functional.pad(run, (0, RUN - len(run))) for run in runs]),
        mask_WP=mask_WP,
        filled_N=mask_WP.flatten().nonzero().squeeze(1),
        states_WPST=states * mask_WP[..., None, None],
        moe_input_WPT=moe_input * mask_WP[..., None],
        router_logits_NE=torch.randn(int(mask_WP.sum()), EXPERTS, generator=generator),
        gate_noise_NE=torch.cat(noise),
    )


def merged(parts: Sequence[Batch]) -> Batch:
    """One batch of the windows of several batches of equal length."""
    length = parts[0].input_ids_BL.shape[1]
    firsts = [sum(part.input_ids_BL.numel() for part in parts[:number]) for number in range(len(parts))]
    assert all(part.input_ids_BL.shape[1] == length for part in parts)
    labels = torch.cat([part.text.labels_N for part in parts])
    targets = [part.text.target for part in parts if part.text.target is not None]
    target = joined(targets) if targets else None
    runs = [part.runs for part in parts if part.runs is not None]
    return Batch(
        windows=tuple(window for part in parts for window in part.windows),
        input_ids_BL=torch.cat([part.input_ids_BL for part in parts]),
        places_N=torch.cat([part.places_N + first for part, first in zip(parts, firsts, strict=True)]),
        text=Text(labels, target, stretches(len(labels), CHUNK_TOKENS, target)),
        runs=_merged_runs(runs, firsts) if runs else None,
        counts=sum((part.counts for part in parts), Counts()),
        dropout_seed=parts[0].dropout_seed,
    )


def whole_set(parts: list[Batch]) -> ValidationSet:
    """A validation set of which one process has all parts."""
    tokens = [part.counts.tokens for part in parts]
    return ValidationSet(parts, [sum(tokens[:number]) for number in range(len(parts))])


def _merged_runs(runs: list[HiddenRuns], firsts: list[int]) -> HiddenRuns:
    columns = {field.name: torch.cat([getattr(each, field.name) for each in runs]) for field in fields(HiddenRuns)}
    columns["places_WP"] = torch.cat([each.places_WP + first for each, first in zip(runs, firsts, strict=True)])
    columns["filled_N"] = columns["mask_WP"].flatten().nonzero().squeeze(1)
    return HiddenRuns(**columns)


def in_stretches(batch: Batch, chunk_tokens: int) -> Batch:
    """The same batch with other stretches."""
    cut = stretches(len(batch.places_N), chunk_tokens, batch.text.target)
    return replace(batch, text=replace(batch.text, stretches=cut))


def heads_of(student: Student) -> Heads:
    """The heads of a student that has some."""
    assert student.heads is not None
    return student.heads


def runs_of(batch: Batch) -> HiddenRuns:
    """The runs of a batch that has some."""
    assert batch.runs is not None
    return batch.runs


def target_of(batch: Batch) -> SparseTarget:
    """The target of a batch that has one."""
    assert batch.text.target is not None
    return batch.text.target


def make_teacher_head() -> TeacherHead:
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    description = HeadDescription(
        teacher_fingerprint="t",
        num_experts=EXPERTS,
        router=RouterRule(score="softmax", experts_per_token=1, normalizes=True),
        moe_norm_epsilon=1e-6,
        final_norm_epsilon=1e-6,
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
def teacher_head() -> TeacherHead:
    return make_teacher_head()


def make_student(teacher_head: TeacherHead, dropout: float = 0.0) -> Student:
    config = LlamaConfig(
        vocab_size=STUDENT_VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        attention_dropout=dropout,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    return Student(model, make_heads([2, 3], 16, TEACHER_SIZE, EXPERTS, seed=0), teacher_head)


@pytest.fixture
def student(teacher_head: TeacherHead) -> Student:
    return make_student(teacher_head)


@pytest.fixture
def experiment() -> ExperimentParams:
    """tests/params.yaml with every term on, and a schedule for three experts."""
    keys = fixed_params().experiment.model_dump()
    changes = {
        "precision": "fp32",
        "temperature": 2.0,
        "kd_weight": 0.7,
        "kd_order": "temper_then_map",
        "kd_positions": "aligned",
        "losses": dict.fromkeys(HIDDEN_TERMS + ROUTER_TERMS, 0.1),
        "router": keys["router"] | {"experts_end": EXPERTS, "noise": 0.0},
        "early_stopping": {"patience": 2, "min_delta": 0.01, "warmup_steps": 0},
    }
    return ExperimentParams.model_validate(keys | changes)


@pytest.fixture
def train() -> Train:
    return Train(
        max_steps=100,
        batch_windows=4,
        micro_batch_windows=4,
        gradient_checkpointing=False,
        learning_rate=1e-3,
        router_learning_rate=2e-3,
        warmup_fraction=0.1,
        final_learning_rate_fraction=0.1,
        weight_decay=0.1,
        gradient_clip=1.0,
        chunk_tokens=CHUNK_TOKENS,
        loader_workers=0,
        target_memory_mb=1,
        log_every=10,
        validate_every=20,
        validation_windows=4,
        checkpoint_every=20,
        max_consecutive_nonfinite=3,
    )
