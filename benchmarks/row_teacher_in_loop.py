"""Training from the cache against the teacher in the loop: the same windows, the same targets, the same KD objective.

Cached, first epoch: a step reads the teacher's rows from disk and makes its targets of them; in later epochs these are
kept. In the loop: the teacher reads the windows first, and the targets are made of what it says. The capture, which the
cache costs once, is not counted. Both losses are compared: they differ by the rounding of the cache alone. Beside them
a step on LM alone: what it is faster by is the most that any cache could give.

Random weights and text; the sizes of the tiny pair, and of the real one, cut to a quarter of its depth where little
time is. Memory is that of tensors, in counted bytes, both models' weights included.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench_row import Row, Size, at_least
from counted_memory import CountedMemory
from interleaved import interleave, spread
from random_pair import QUARTER, REAL, TINY, TOY, Pair, make_student, make_teacher, params_of
from random_run import RandomRun, make_run
from step_kinds import CPU
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.batches.batch import Batch
from moe_distill.batches.loader import BatchReader, BatchRequest
from moe_distill.batches.split import Split, open_split
from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import Text
from moe_distill.shards.window_store import model_inputs
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.sparse_target import NextTokens, SparseTarget, sparse_target
from moe_distill.targets.stretches import stretches
from moe_distill.targets.teacher_rows import teacher_rows
from moe_distill.targets.token_shares import VocabularyMap
from moe_distill.targets.window_targets import TargetSettings, WindowTargets
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.columns import Batch as TeacherBatch
from moe_distill.teacher.columns import position_columns
from moe_distill.teacher.forward import forward
from moe_distill.training.kd_weight import LARGEST_KD_WEIGHT
from moe_distill.training.objective import Objective, Student, evaluate_objective
from moe_distill.training.schedule import LM_ONLY
from moe_distill.training.step import optimizer_step
from moe_distill.training.trainer import Trainer, make_trainer
from moe_distill.utils.device import seed_everything

FIRST_EPOCH, LATER_EPOCHS, IN_THE_LOOP, LM_ALONE = "first epoch", "later epochs", "in the loop", "LM alone"
ROUNDING = 1e-3  # of the loss: what the cache's fp16 may change
OBJECTIVE = replace(LM_ONLY, kd_weight=LARGEST_KD_WEIGHT)
SETTINGS = TargetSettings(1.0, "map_then_temper", "sampled")


@dataclass(frozen=True)
class Loop:
    """A student, its teacher, and the windows of a micro-batch that it is trained on."""

    run: RandomRun
    teacher: PreTrainedModel
    student: Student
    trainer: Trainer
    split: Split
    vocabulary_map: VocabularyMap
    request: BatchRequest


def rows(size: Size) -> Iterator[Row]:
    """Speed and memory of each pair."""
    for name, pair, n_windows, rounds in cases(size):
        with TemporaryDirectory() as folder:
            loop = make_loop(Path(folder), pair, n_windows)
            check_same_objective(loop)
            times = interleave(ways(loop), rounds)
            n_bytes = {way: peak_bytes(loop, way) for way in (FIRST_EPOCH, IN_THE_LOOP)}
        most = times.ratio(IN_THE_LOOP, LM_ALONE, "cpu").median
        for way in (FIRST_EPOCH, LATER_EPOCHS):
            yield Row(
                f"KD step from the cache ({way}) against the teacher in the loop, speed, {name}",
                ours=f"{times.median(way, 'cpu'):.3f} s",
                reference=f"{times.median(IN_THE_LOOP, 'cpu'):.3f} s",
                ratio=times.ratio(IN_THE_LOOP, way, "cpu"),
                target=at_least(2.5),
                note=f"{most:.2f} times would be a step on LM alone: more is not to be had",
            )
        cached, asked = n_bytes[FIRST_EPOCH], n_bytes[IN_THE_LOOP]
        yield Row(
            f"the same, peak memory of tensors, first epoch, {name}",
            ours=f"{cached / 1e6:,.0f} MB",
            reference=f"{asked / 1e6:,.0f} MB",
            ratio=spread([cached / asked]),
        )


def cases(size: Size) -> list[tuple[str, Pair, int, int]]:
    """Name, pair, windows of a step, rounds."""
    if size is Size.SMALLEST:
        return [("toy pair", TOY, 2, 1)]
    tiny = ("tiny pair", TINY, 16, size.pick(0, 8, 24))
    if size is Size.SHORT:
        return [tiny, ("a quarter of the real pair's layers", QUARTER, 1, 3)]
    return [tiny, ("real pair", REAL, 1, 6)]


def make_loop(folder: Path, pair: Pair, n_windows: int) -> Loop:
    """The windows are one batch of the capture, so that both ways draw the same samples of the tail."""
    seed_everything(0)
    teacher = make_teacher(pair, torch.float32, CPU.device)
    run = make_run(folder, pair, teacher, {"train": n_windows})
    student = Student(make_student(pair, CPU.device).train(), None, None)
    split = open_split(folder / "windows/train", folder / "targets/train")
    return Loop(
        run=run,
        teacher=teacher,
        student=student,
        trainer=make_trainer(student, params_of(pair).profile.train, CPU, 0),
        split=split,
        vocabulary_map=load_vocabulary_map(folder / "windows/vocabulary_map", split.windows),
        request=BatchRequest(tuple(range(n_windows))),
    )


def ways(loop: Loop) -> dict[str, Callable[[], object]]:
    """A step of each."""
    kept = targets_of(loop, memory_bytes=2**40)
    return {
        FIRST_EPOCH: lambda: step(loop, read_batch(loop, targets_of(loop, memory_bytes=0))),
        LATER_EPOCHS: lambda: step(loop, read_batch(loop, kept)),
        IN_THE_LOOP: lambda: step(loop, asked_batch(loop)),
        LM_ALONE: lambda: step(loop, read_batch(loop, None), LM_ONLY),
    }


def step(loop: Loop, batch: Batch, objective: Objective = OBJECTIVE) -> None:
    trainer, clip = loop.trainer, params_of(loop.run.pair).profile.train.gradient_clip
    optimizer_step(loop.student, [batch], objective, trainer.optimizer, trainer.scaler, CPU, clip)


def targets_of(loop: Loop, memory_bytes: int) -> WindowTargets:
    assert loop.split.shards is not None
    return WindowTargets(loop.split.windows, loop.split.shards, loop.vocabulary_map, SETTINGS, memory_bytes)


def read_batch(loop: Loop, targets: WindowTargets | None) -> Batch:
    return BatchReader(loop.split, targets, with_states=False, chunk_tokens=chunk_tokens(loop)).read(loop.request)


def asked_batch(loop: Loop) -> Batch:
    """Windows read, targets made of what the teacher says now."""
    batch = read_batch(loop, None)
    target, labels_N = ask(loop), batch.text.labels_N
    return replace(batch, text=Text(labels_N, target, stretches(len(labels_N), chunk_tokens(loop), target)))


def chunk_tokens(loop: Loop) -> int:
    return params_of(loop.run.pair).profile.train.chunk_tokens


@torch.inference_mode()
def ask(loop: Loop) -> SparseTarget:
    """The targets of all windows, each position of which is aligned."""
    windows, capture = loop.run.windows("train"), params_of(loop.run.pair).profile.teacher
    batch = TeacherBatch(range(len(windows)), *model_inputs(windows, range(len(windows))))
    architecture = find_architecture(loop.teacher)
    head: OutputHead = architecture.decoder.head.to_dtype(torch.float32)
    states, _in_fp32 = forward(loop.teacher, architecture, batch.input_ids_BL, [])
    nothing_O = torch.zeros(0, dtype=torch.int64)
    columns, _textless = position_columns(batch, states, head, nothing_O, capture, capture.seed)
    has_target_N = torch.ones(len(columns["topk_ids"]), dtype=torch.bool)
    return sparse_target(
        teacher_rows(columns, len(head.weight_VD) - capture.k),
        has_target_N,
        loop.vocabulary_map,
        SETTINGS.temperature,
        SETTINGS.order,
        SETTINGS.tail,
        NextTokens(student_column(loop, "next_teacher_ids"), student_column(loop, "token_ids")),
    )


def student_column(loop: Loop, name: str) -> Tensor:
    return torch.cat([loop.split.windows.tokens(name, window).long() for window in loop.request.windows])


def check_same_objective(loop: Loop) -> None:
    """Both ways give one loss, but for the rounding of the cache."""
    with torch.no_grad():
        cached, asked = (
            float(evaluate_objective(loop.student, batch, OBJECTIVE, batch.counts, None).loss)
            for batch in (read_batch(loop, targets_of(loop, 0)), asked_batch(loop))
        )
    assert abs(cached - asked) <= ROUNDING * abs(asked), f"another objective: {cached} for {asked}"


def peak_bytes(loop: Loop, way: str) -> int:
    """Of all tensors in a step, weights and the optimizer's moments included."""
    models = [loop.student.model] if way != IN_THE_LOOP else [loop.student.model, loop.teacher]
    moments = [each for state in loop.trainer.optimizer.state.values() for each in state.values()]
    weights = [weight for model in models for weight in model.parameters()]
    for weight in loop.student.model.parameters():
        weight.grad = None
    memory = CountedMemory()
    with memory:
        for tensor in [*weights, *moments]:
            memory.count(tensor)
        ways(loop)[way]()
    return memory.peak
