"""The student beside the teacher: at the same positions of the validation text, and after the same beginnings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from moe_distill.evaluation.evaluate import AGREED_WITH
from moe_distill.models.prefix_token import prefix_token_id
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.reporting.continuations import continued
from moe_distill.reporting.pieces import Guess, Segment, aligned_segments, make_pieces, text_of, visible
from moe_distill.reporting.teacher_examples import TOP, TeacherPosition, TeacherSample, guesses
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, WindowStore, model_inputs
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.window_targets import WindowTargets


@dataclass(frozen=True)
class Student:
    """A student that can be asked."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    spelled: Sequence[bytes | None]  # bytes of every id
    max_length: int  # tokens of a window, prefix token included
    prefix_id: int  # that every training window began with


def load_student(folder: Path, spelled: Sequence[bytes | None], max_length: int) -> Student:
    """The student of a model folder, on the CPU."""
    tokenizer, model = load_tokenizer(folder), load_causal_lm(folder, torch.float32, torch.device("cpu"))
    return Student(model, tokenizer, spelled, max_length, prefix_token_id(folder, tokenizer))


@dataclass(frozen=True)
class Position:
    """Both models before the same byte of the text."""

    segments: list[Segment]
    teacher: list[Guess]
    target: list[Guess]  # the teacher's distribution, moved to the student's vocabulary
    student: list[Guess]
    text: str  # the student's token that does follow


@dataclass(frozen=True)
class Sample:
    """A beginning, and how the text, the teacher and the student go on."""

    prompt: str
    text: str
    teacher: str
    student: str


@torch.inference_mode()
def student_positions(
    windows: Path, targets: Path, student: Student, positions: Sequence[TeacherPosition]
) -> list[Position]:
    """The student's likeliest next tokens at the teacher's positions.

    Args:
        windows: data/windows.
        targets: data/teacher_shards.
    """
    store = WindowStore(windows / "student/validation", STUDENT_WINDOWS)
    train_windows = WindowStore(windows / "student/train", STUDENT_WINDOWS)
    vocabulary_map = load_vocabulary_map(windows / "student/vocabulary_map", train_windows)
    mapped = WindowTargets(store, open_targets(targets / "validation"), vocabulary_map, AGREED_WITH)
    found = []
    for each in positions:
        inputs, (ids,) = model_inputs(store, [each.window])
        logits_V = student.model(input_ids=inputs.to(student.model.device), use_cache=False).logits[0, each.position]
        likely = logits_V.float().softmax(-1).topk(TOP)
        shown = make_pieces(ids[each.first : each.stop].tolist(), student.spelled)
        read_bytes = sum(piece.n_bytes for piece in shown[: each.position - each.first])
        found.append(
            Position(
                segments=aligned_segments(each.pieces, shown, read_bytes),
                teacher=each.top,
                target=_likeliest(mapped.of(each.window), each.position, student.spelled),
                student=guesses(likely.indices, likely.values, student.spelled),
                text=visible(student.spelled[int(ids[each.position])]),
            )
        )
    return found


def student_samples(student: Student, samples: Sequence[TeacherSample], n_tokens: int) -> list[Sample]:
    """What the student writes, in so many tokens, after the beginnings that the teacher was given."""
    found = []
    for each in samples:
        ids = student.tokenizer.encode(each.prompt, add_special_tokens=False).ids
        written = continued(student.model, [student.prefix_id, *ids], n_tokens, student.max_length)
        said = text_of([*ids, *written], student.spelled).removeprefix(text_of(ids, student.spelled))
        found.append(Sample(prompt=each.prompt, text=each.text, teacher=each.written, student=said))
    return found


def _likeliest(target: SparseTarget, position: int, spelled: Sequence[bytes | None]) -> list[Guess]:
    """The entries of a position with the most probability."""
    of_it = target.entry_positions_Z == position
    probs, ids = target.entry_probs_Z[of_it], target.entry_ids_Z[of_it]
    first = probs.argsort(descending=True, stable=True)[:TOP]
    return guesses(ids[first], probs[first], spelled)
