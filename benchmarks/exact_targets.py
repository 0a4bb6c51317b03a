"""Write the exact targets (benchmarks/exact_search.py) of some windows of either split.

After `dvc repro` with profile tiny, from the project's folder:

    python benchmarks/exact_targets.py                  # 64 windows of either split -> .work/exact_targets
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import typer
from exact_search import Limits, Place, Reader, Search, Teacher, pre_tokens
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from moe_distill.alignment.encode import Encoder, make_encoder
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.shards.window_store import SPLITS, STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore

HOME = Path(".work/exact_targets")
MODELS = Path("models")


@dataclass(frozen=True)
class Window:
    """A student window inside its teacher window."""

    around: int  # number of the teacher window
    student_ids: list[int]
    teacher_ids: list[int]
    text: bytes  # of the teacher window
    teacher_starts: NDArray[np.int64]  # of the teacher's tokens, in bytes of that text
    student_starts: NDArray[np.int64]  # of the student's, in the same


def places_of(window: Window, student: Encoder) -> list[Place]:
    """The positions of a student window but those in its last pre-token, whose end the window cuts.

    None if the window is not what the tokenizer makes of its text alone.
    """
    stop = int(window.student_starts[-1]) + len(student.token_bytes.table[window.student_ids[-1]] or b"")
    spelled = window.text[int(window.student_starts[0]) : stop].decode()
    encoding = student.tokenizer.encode(spelled, add_special_tokens=False)
    if encoding.ids != window.student_ids:
        return []
    words, places = pre_tokens(encoding), []
    for number in range(words.index(words[-1])):
        start, first = int(window.student_starts[number]), number
        while first > 0 and words[number - 1] - words[first - 1] < 2:  # two pre-tokens are enough
            first -= 1
        row = int(np.searchsorted(window.teacher_starts, start, "right")) - 1
        written = window.text[int(window.teacher_starts[row]) : start]
        places.append(Place(row, written, tuple(window.student_ids[first:number]), tuple(window.teacher_ids[row:])))
    return places


def window_of(stores: tuple[WindowStore, WindowStore], encoders: tuple[Encoder, Encoder], number: int) -> Window:
    """A student window by its number."""
    (of_student, of_teacher), (student, teacher) = stores, encoders
    rows = of_student.tokens("teacher_rows", number)
    aligned = int((rows >= 0).nonzero()[0])
    around = int(torch.searchsorted(of_teacher.token_counts.cumsum(0), int(rows[aligned]), right=True))
    student_ids, teacher_ids = (
        of_student.tokens("token_ids", number).numpy(),
        of_teacher.tokens("token_ids", around).numpy(),
    )
    student_starts, teacher_starts = (
        np.cumsum(encoder.token_bytes.lengths[ids]) - encoder.token_bytes.lengths[ids]
        for encoder, ids in ((student, student_ids), (teacher, teacher_ids))
    )
    offset = teacher_starts[int(rows[aligned]) - of_teacher.span(around).start] - student_starts[aligned]
    return Window(
        around,
        student_ids.tolist(),
        teacher_ids.tolist(),
        teacher.token_bytes.join(teacher_ids),
        teacher_starts,
        student_starts + offset,
    )


def main(windows: int = 64, least: float = 1e-3, floor: float = 3e-5, depth: int = 4, seed: int = 0) -> None:
    """Write the exact targets of some windows of either split."""
    HOME.mkdir(parents=True, exist_ok=True)
    student, other = (make_encoder(load_tokenizer(MODELS / name), 0, name) for name in ("student_init", "teacher"))
    teacher = Teacher(load_causal_lm(MODELS / "teacher", torch.float32, torch.device("cpu")), other.token_bytes.table)
    reader, limits = Reader(student), Limits(floor, least, depth)
    for split in SPLITS:
        stores = (
            WindowStore(Path("data/windows/student") / split, STUDENT_WINDOWS),
            WindowStore(Path("data/windows/teacher") / split, TEACHER_WINDOWS),
        )
        drawn = torch.randperm(len(stores[0]), generator=torch.Generator().manual_seed(seed))[:windows].sort().values
        columns: dict[str, list[Tensor]] = defaultdict(list)
        for number in tqdm(drawn.tolist(), desc=split):
            window = window_of(stores, (student, other), number)
            places = places_of(window, student)
            search = Search(teacher, reader, places, limits)
            context = torch.tensor([stores[1].prefix_id, *window.teacher_ids])
            search.search(context)
            reader.forget()
            kept_N = search.target_NV.sum(-1)
            columns["windows"].append(torch.tensor([number]))
            columns["counts"].append(torch.tensor([len(places)]))
            columns["targets"].append(torch.from_numpy(search.target_NV / kept_N[:, None]).float())
            columns["guessed"].append(torch.from_numpy(search.guessed_N / kept_N))
            columns["teacher_nll"].append(teacher_nll(teacher, context, window)[: len(places)])
        save_file({name: torch.cat(found) for name, found in columns.items()}, HOME / f"{split}.safetensors")


def teacher_nll(teacher: Teacher, context: Tensor, window: Window) -> Tensor:
    """Of the teacher's tokens that begin where each of the student's does or inside it, fp64."""
    rows = np.arange(len(window.teacher_ids))
    probs = teacher.after(context, rows.tolist(), [()] * len(rows))
    inside = np.searchsorted(window.student_starts, window.teacher_starts, "right") - 1
    nll = np.zeros(len(window.student_ids))
    np.add.at(nll, inside[inside >= 0], -np.log(probs[rows, window.teacher_ids])[inside >= 0])
    return torch.from_numpy(nll)


if __name__ == "__main__":
    typer.run(main)
