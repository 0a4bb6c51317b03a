"""What the teacher says at a few positions of the validation text, and writes after a few of its beginnings.

They are for the report, which shows the student beside them; evaluation itself does not open the teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.batches.batch_order import spread_windows
from moe_distill.config.profile import Evaluate
from moe_distill.reporting.continuations import continued
from moe_distill.reporting.model_facts import ModelFacts
from moe_distill.reporting.pieces import Guess, Piece, make_pieces, text_of, visible
from moe_distill.shards.provenance import check_same_windows
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore

POSITIONS = 5  # that are shown
CONTEXT = 8  # student tokens shown before a position
TOP = 5
PROMPT_TOKENS = 24  # teacher tokens of a beginning


class TeacherPosition(BaseModel):
    """The teacher at a position of a student window."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window: int  # student window of the validation split
    first: int  # student tokens [first, stop) are shown, of which `position` is the first that has not been read
    position: int
    stop: int
    pieces: list[Piece]  # teacher tokens of the same bytes
    top: list[Guess]  # the teacher's likeliest next tokens


class TeacherSample(BaseModel):
    """A beginning from the validation text, how the text goes on, and how the teacher does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    text: str
    written: str


class TeacherExamples(BaseModel):
    """data/teacher_examples.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: ModelFacts  # the teacher: what its config.json says
    positions: list[TeacherPosition]
    samples: list[TeacherSample]


@dataclass(frozen=True)
class Teacher:
    """A teacher that can be asked."""

    model: PreTrainedModel
    spelled: Sequence[bytes | None]  # bytes of every id
    max_length: int  # tokens of a window, prefix token included


def teacher_positions(windows: Path, targets: Path, spelled: Sequence[bytes | None]) -> list[TeacherPosition]:
    """The teacher's likeliest tokens at a few aligned positions, evenly spread over the validation text.

    Args:
        windows: data/windows.
        targets: data/teacher_shards.
        spelled: the bytes of every id of the teacher's tokenizer.
    """
    student = WindowStore(windows / "student/validation", STUDENT_WINDOWS)
    teacher = WindowStore(windows / "teacher/validation", TEACHER_WINDOWS)
    shards = open_targets(targets / "validation")
    check_same_windows(student.reader, shards)
    found = []
    for number in spread_windows(len(student), POSITIONS):
        rows = student.tokens("teacher_rows", number)
        shown = _shown((rows >= 0).nonzero().flatten().tolist())
        if shown is None:
            continue
        first, position, stop = shown
        row = int(rows[position])
        ids = teacher.reader.slice("token_ids", int(rows[first]), int(rows[stop])).tolist()
        top_ids, top_logprobs = (shards.slice(name, row, row + 1)[0, :TOP] for name in ("topk_ids", "topk_logprobs"))
        found.append(
            TeacherPosition(
                window=number,
                first=first,
                position=position,
                stop=stop,
                pieces=make_pieces(ids, spelled),
                top=guesses(top_ids, top_logprobs.float().exp(), spelled),
            )
        )
    return found


def guesses(ids: Tensor, probabilities: Tensor, spelled: Sequence[bytes | None]) -> list[Guess]:
    """Tokens as they are shown, with their probabilities; an id beyond the tokenizer's is a row that nothing names."""
    pairs = zip(ids.tolist(), probabilities.tolist(), strict=True)
    return [
        Guess(visible(spelled[number]) if number < len(spelled) else f"(id {number})", value) for number, value in pairs
    ]


def teacher_samples(windows: Path, teacher: Teacher, params: Evaluate) -> list[TeacherSample]:
    """What the teacher writes after beginnings of validation windows, evenly spread.

    Args:
        windows: data/windows.
    """
    store = WindowStore(windows / "teacher/validation", TEACHER_WINDOWS)
    long = (store.token_counts >= 2 * PROMPT_TOKENS).nonzero().flatten().tolist() or list(range(len(store)))
    samples = []
    for place in spread_windows(len(long), params.samples):
        ids = store.tokens("token_ids", long[place]).tolist()
        n_prompt = min(PROMPT_TOKENS, max(1, len(ids) // 2))
        prompt = text_of(ids[:n_prompt], teacher.spelled)
        written = continued(teacher.model, [store.prefix_id, *ids[:n_prompt]], params.sample_tokens, teacher.max_length)
        after = [text_of(ids[: n_prompt + params.sample_tokens], teacher.spelled)]
        after.append(text_of([*ids[:n_prompt], *written], teacher.spelled))
        text, said = (each.removeprefix(prompt) for each in after)
        samples.append(TeacherSample(prompt=prompt, text=text, written=said))
    return samples


def _shown(aligned: Sequence[int]) -> tuple[int, int, int] | None:
    """Of a window's aligned positions the middle one, where the stretch around it begins, and the next aligned one."""
    if len(aligned) < 2:
        return None
    middle = (len(aligned) - 1) // 2
    position = aligned[middle]
    first = min(each for each in aligned if each >= position - CONTEXT)
    return first, position, aligned[middle + 1]
