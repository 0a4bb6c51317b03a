"""What a training step costs: KD and phase 2 against LM alone, LM alone against a bare transformers step.

    python benchmarks/step_cost.py                     # both shapes; the tiny one needs a finished `dvc repro teacher`
    python benchmarks/step_cost.py --only tiny --profile kd
    python benchmarks/step_cost.py --json step_cost.json

Batches are read before anything is timed: making targets is the loader's work, once an epoch at most. In every round
each kind of step runs once, so that a ratio is of neighbours in time. CPU time is that of this process, all threads.

Tiny: the profile's own windows, shards and student. Real: a student of SmolLM-135M's configuration with random weights,
windows of 384, 64 kept ids and 32 tail samples a position, a teacher of Huihui-MoE-1B's sizes, random all.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from moe_distill.batches.batch import Batch, Counts, HiddenRuns
from moe_distill.batches.batch_order import epoch_batches
from moe_distill.batches.loader import BatchReader, requests
from moe_distill.batches.split import count_experts, open_split
from moe_distill.config.params import Params, load_params
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.losses.text_loss import Text
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.replay.block import TeacherHead, load_teacher_head
from moe_distill.replay.head import HeadDescription
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.stretches import stretches
from moe_distill.targets.window_targets import TargetSettings, WindowTargets
from moe_distill.training.kd_weight import LARGEST_KD_WEIGHT
from moe_distill.training.objective import Objective, Student
from moe_distill.training.schedule import LM_ONLY, objective_at
from moe_distill.training.step import optimizer_step
from moe_distill.training.student import Heads, layer_pairs, make_heads
from moe_distill.training.trainer import make_trainer
from moe_distill.utils.device import Runtime, seed_everything

KINDS = ("bare", "lm", "kd", "phase2")
CPU = Runtime(torch.device("cpu"), torch.float32)


@dataclass(frozen=True)
class Case:
    """A student, the steps it is asked for, and what phase 2 needs beside it."""

    model: PreTrainedModel
    heads: Heads
    teacher_head: TeacherHead
    steps: list[list[Batch]]  # in phase 2's form; the others leave out what they do not read
    phase2: Objective
    params: Params


def tiny_case(params: Params, n_steps: int) -> Case:
    """The profile's own data, phase 2 with every term at its full weight."""
    train = params.profile.train
    split = open_split(Path("data/windows/student/train"), Path("data/teacher_shards/train"))
    assert split.shards is not None
    vocabulary_map = load_vocabulary_map(Path("data/windows/student/vocabulary_map"), split.windows)
    experiment = params.experiment
    settings = TargetSettings(experiment.temperature, experiment.kd_order, experiment.kd_tail)
    targets = WindowTargets(split.windows, split.shards, vocabulary_map, settings)
    reader = BatchReader(split, targets, with_states=True, chunk_tokens=train.chunk_tokens)
    order = epoch_batches(split.windows.token_counts, train.batch_windows, experiment.seed, epoch=0)[:n_steps]
    steps = [[reader.read(each) for each in requests(windows, train.micro_batch_windows)] for windows in order]
    model = load_causal_lm(Path("models/student_init"), torch.float32, CPU.device)
    shards = split.shards.index
    layers, depth = shards.metadata["hidden_layers"], shards.metadata["layers"]
    assert isinstance(layers, list)
    assert isinstance(depth, int)
    pairs = layer_pairs(layers, depth, model.config.num_hidden_layers)
    size, experts = shards.fields["hidden"].shape[-1], count_experts(split.shards)
    return Case(
        model=model,
        heads=make_heads(pairs, model.config.hidden_size, size, experts, seed=0),
        teacher_head=load_teacher_head(Path("models/teacher_head"), CPU.device),
        steps=steps,
        phase2=objective_at(train.max_steps - 1, experiment, train, {}, LARGEST_KD_WEIGHT),
        params=params,
    )


def real_case(params: Params, batch_windows: int, n_steps: int) -> Case:
    """Random weights and random text at the shapes of the real pair."""
    seed_everything(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    teacher_size, expert_size, experts, layers = 1024, 3072, 3, [7, 14, 28]
    description = HeadDescription(
        teacher_fingerprint="",
        num_experts=experts,
        experts_per_token=1,
        normalizes_topk=True,
        activation="silu",
        norm_epsilon=1e-6,
        weights_sha256="",
    )
    scale = teacher_size**-0.5
    tensors = {
        "final_norm": torch.ones(teacher_size),
        "moe_norm": torch.ones(teacher_size),
        "gate_up": scale * torch.randn(experts, 2 * expert_size, teacher_size),
        "down": scale * torch.randn(experts, teacher_size, expert_size),
    }
    steps = [
        [random_batch(batch_windows, 384, config.vocab_size, teacher_size, experts, layers)] for _ in range(n_steps)
    ]
    return Case(
        model=model,
        heads=make_heads(layer_pairs(layers, 28, 30), 576, teacher_size, experts, seed=0),
        teacher_head=TeacherHead(description, tensors),
        steps=steps,
        phase2=objective_at(
            params.profile.train.max_steps - 1, params.experiment, params.profile.train, {}, LARGEST_KD_WEIGHT
        ),
        params=params,
    )


def random_batch(
    n_windows: int, length: int, vocabulary: int, teacher_size: int, experts: int, layers: list[int]
) -> Batch:
    """Windows without padding: 0.9 of the positions with a target, a run of 64 with states in half of the windows."""
    n, runs, run = n_windows * length, -(-n_windows // 2), 64
    tokens_BL = torch.randint(vocabulary, (n_windows, length + 1))
    target = random_target(n, vocabulary, entries=96, samples=32)
    hidden = HiddenRuns(
        places_WP=torch.stack([torch.arange(run) + 100 + number * length for number in range(runs)]),
        mask_WP=torch.ones(runs, run, dtype=torch.bool),
        filled_N=torch.arange(runs * run),
        states_WPST=torch.randn(runs, run, len(layers), teacher_size),
        moe_input_WPT=torch.randn(runs, run, teacher_size),
        router_logits_NE=torch.randn(runs * run, experts),
        gate_noise_NE=torch.randn(runs * run, experts),
    )
    return Batch(
        windows=tuple(range(n_windows)),
        input_ids_BL=tokens_BL[:, :-1],
        places_N=torch.arange(n),
        text=Text(tokens_BL[:, 1:].flatten(), target, stretches(n, 512, target)),
        runs=hidden,
        counts=Counts(n, int(target.has_target_N.sum()), runs * run, n_bytes=4 * n, places=n),
    )


def random_target(n: int, vocabulary: int, entries: int, samples: int) -> SparseTarget:
    """Random ids; entries hold nine tenths of the probability."""
    has_target_N = torch.rand(n) < 0.9
    positions = has_target_N.nonzero().squeeze(1)
    probs_AS = 0.9 * torch.randn(len(positions), entries).mul(3).softmax(-1)
    ids = torch.stack([torch.randperm(vocabulary)[:entries].sort().values for _ in range(len(positions))])
    listed = has_target_N.float()
    return SparseTarget(
        temperature=1.0,
        is_sampled=True,
        has_target_N=has_target_N,
        residual_N=0.1 * listed,
        listed_mass_N=listed,
        entry_positions_Z=positions.repeat_interleave(entries).int(),
        entry_ids_Z=ids.flatten().int(),
        entry_probs_Z=probs_AS.flatten(),
        sample_positions_Y=positions.repeat_interleave(samples).int(),
        sample_ids_Y=torch.randint(vocabulary, (len(positions) * samples,)).int(),
        sample_probs_Y=torch.full((len(positions) * samples,), 0.1 / samples),
    )


def make_step(case: Case, kind: str) -> Callable[[int], None]:
    """A step of one kind, on its own copy of the student, by its number."""
    model = copy.deepcopy(case.model).train()
    if kind == "bare":
        return bare_step(model, case)
    student = Student(model, None, None)
    objective = LM_ONLY
    if kind == "kd":
        no_states = dict.fromkeys(HIDDEN_TERMS + ROUTER_TERMS, 0.0)
        objective = replace(LM_ONLY, kd_weight=case.phase2.kd_weight, weights=no_states)
    if kind == "phase2":
        student, objective = Student(model, copy.deepcopy(case.heads), case.teacher_head), case.phase2
    steps = [[as_read(batch, kind) for batch in parts] for parts in case.steps]
    train = case.params.profile.train
    trainer = make_trainer(student, train, CPU, 0)

    def run(number: int) -> None:
        parts = steps[number % len(steps)]
        optimizer_step(
            student, parts, objective, trainer.optimizer, trainer.scaler, CPU, train.gradient_clip, with_kl=False
        )

    return run


def as_read(batch: Batch, kind: str) -> Batch:
    """The batch as a step of this kind reads it."""
    if kind == "lm":
        text = replace(batch.text, target=None)
        return replace(batch, text=text, runs=None)
    return batch if kind == "phase2" else replace(batch, runs=None)


def bare_step(model: PreTrainedModel, case: Case) -> Callable[[int], None]:
    """Forward with labels, backward, AdamW, as a plain transformers loop has them."""
    train = case.params.profile.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=train.learning_rate, fused=True)
    inputs = [[(batch.input_ids_BL, padded_labels(batch)) for batch in parts] for parts in case.steps]

    def run(number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        for ids_BL, targets_BL in inputs[number % len(inputs)]:
            model(input_ids=ids_BL, labels=targets_BL, shift_labels=targets_BL, use_cache=False).loss.backward()
        optimizer.step()

    return run


def padded_labels(batch: Batch) -> Tensor:
    flat = torch.full((batch.input_ids_BL.numel(),), -100)
    return flat.index_copy(0, batch.places_N, batch.text.labels_N).view_as(batch.input_ids_BL)


def measure(case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """Ratios of CPU and of wall time, each the median over the rounds."""
    steps = {kind: make_step(case, kind) for kind in KINDS}
    for step in steps.values():
        step(0)
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        for kind, step in steps.items():
            began = time.process_time(), time.perf_counter()
            step(number)
            times[kind].append((time.process_time() - began[0], time.perf_counter() - began[1]))
    found = {}
    for clock, name in enumerate(("cpu", "wall")):
        found[name] = {
            ratio: statistics.median(
                above[clock] / below[clock] for above, below in zip(times[upper], times[lower], strict=True)
            )
            for ratio, upper, lower in (
                ("kd_over_lm", "kd", "lm"),
                ("phase2_over_lm", "phase2", "lm"),
                ("lm_over_bare", "lm", "bare"),
            )
        }
        found[name] |= {f"{kind}_seconds": statistics.median(each[clock] for each in times[kind]) for kind in KINDS}
    return found


def main(
    rounds: int = 12,
    only: str = "tiny,real",
    real_windows: Annotated[int, typer.Option(help="windows of a real step")] = 1,
    json_path: Annotated[Path | None, typer.Option("--json")] = None,
    profile: Annotated[str, typer.Option(help="show where a step of this kind spends its time, instead")] = "",
) -> None:
    """Print the ratios; with --json, write those of CPU time as {"tiny": {...}, "real": {...}}."""
    seed_everything(0)
    params = load_params()
    results = {}
    for name in only.split(","):
        case = tiny_case(params, rounds) if name == "tiny" else real_case(params, real_windows, n_steps=2)
        if profile:
            show_profile(case, profile)
            continue
        found = measure(case, rounds)
        results[name] = {ratio: value for ratio, value in found["cpu"].items() if "_over_" in ratio}
        for clock, values in found.items():
            print(f"{name} {clock}: " + "  ".join(f"{key} {value:.3f}" for key, value in values.items()), flush=True)
    if json_path is not None and results:
        json_path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def show_profile(case: Case, kind: str) -> None:
    step = make_step(case, kind)
    step(0)
    with torch.profiler.profile() as profiler:
        for number in range(3):
            step(number)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    typer.run(main)
