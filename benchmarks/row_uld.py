"""Our loss against trl's `ULDLoss` (trl.experimental.gold, its defaults), forward and backward, on the same logits.

Both tokenizers of the real pair read one text; the student's logits are a product of random states and a random output
matrix, the teacher's are drawn. Ours: targets made of the teacher's cached rows, then LM and KD with the product with
the output matrix and its gradient, which theirs is spared. That the cache was made once is not counted, nor what a
tokenizer's merges deny (targets/canonical), which the loader asks once a window.

trl is no dependency: `MOE_DISTILL_TRL` names the python of an environment that has it.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench_row import Row, Size, at_least, missing
from bench_texts import TOKENIZERS, encoders, find_asset, help_texts, no_assets
from interleaved import Times, interleave
from random_pair import REAL, drawn_logits, params_of
from safetensors.torch import save_file
from torch import Tensor

from moe_distill.alignment.encode import Encoder, encode
from moe_distill.alignment.vocabulary_map import vocabulary_map
from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import Text, text_loss
from moe_distill.targets.sparse_target import NextTokens, sparse_target
from moe_distill.targets.stretches import stretches
from moe_distill.targets.teacher_rows import teacher_rows
from moe_distill.targets.token_shares import rule_map
from moe_distill.teacher.sparsify import sparsify
from moe_distill.training.kd_weight import LARGEST_KD_WEIGHT

PYTHON = "MOE_DISTILL_TRL"
NO_TRL = f"{PYTHON} is not set: python -m venv DIR && DIR/bin/pip install trl, then {PYTHON}=DIR/bin/python"
CORPUS = "corpora/wikitext2_test_raw.txt"
LONGEST, TARGET = 641, at_least(100)


def rows(size: Size) -> Iterator[Row]:
    """A line for each length, and how both grow."""
    corpus, seconds = find_asset(CORPUS), {}
    if size is not Size.SMALLEST and None in (corpus, *map(find_asset, TOKENIZERS)):
        yield missing(what(LONGEST), no_assets(CORPUS, *TOKENIZERS), TARGET)
        return
    _names, (teacher, student) = encoders(size)
    text = help_texts()[0] if corpus is None or size is Size.SMALLEST else corpus.read_text(encoding="utf-8")
    for length, rounds in lengths(size).items():
        target = TARGET if length == LONGEST else None
        loss = Losses(text, teacher, student, length)
        python = os.environ.get(PYTHON)
        if python is None:
            ours = interleave({"ours": loss.ours}, rounds).median("ours", "cpu")
            yield Row(what(length), ours=f"{ours:.2f} s", target=target, note=f"no figure of theirs: {NO_TRL}")
            continue
        times = times_of_both(loss, python, rounds)
        seconds[length] = times
        yield Row(
            what(length),
            ours=f"{times.median('ours', 'cpu'):.2f} s",
            reference=f"{times.median('theirs', 'cpu'):.2f} s",
            ratio=times.ratio("theirs", "ours", "cpu"),
            target=target,
        )
    if size is Size.SHORT:
        yield missing(what(LONGEST), "theirs takes minutes: `make bench-full`", TARGET)
    if len(seconds) > 1:
        first, *_, last = seconds
        grown = [seconds[last].median(name, "cpu") / seconds[first].median(name, "cpu") for name in ("ours", "theirs")]
        yield Row(
            f"growth of both from {first} to {last} tokens, {last / first:.1f} times as many",
            ours=f"{grown[0]:.1f} times",
            reference=f"{grown[1]:.1f} times",
        )


def what(length: int) -> str:
    return f"LM and KD against trl's ULDLoss, CPU time, {length} tokens of the student"


def lengths(size: Size) -> dict[int, int]:
    """Tokens of the student's window, and how often it is measured: theirs takes minutes at the longest."""
    if size is Size.SMALLEST:
        return {20: 1}
    return {178: 2} if size is Size.SHORT else {178: 2, 329: 1, LONGEST: 1}


class Losses:
    """A window of a text, the logits of both models over it, and our loss of them."""

    def __init__(self, text: str, teacher: Encoder, student: Encoder, length: int) -> None:
        self._student_ids, self._student_ends = tokens_of(text, student, n_tokens=length)
        self._teacher_ids, self._teacher_ends = tokens_of(text, teacher, n_bytes=int(self._student_ends[-1]))
        generator, hidden = torch.Generator().manual_seed(0), REAL.student.hidden
        n_student, n_teacher = len(student.token_bytes.table), len(teacher.token_bytes.table)
        self._hidden_ND = torch.randn(length, hidden, generator=generator).requires_grad_()
        self._weight_VD = (0.04 * torch.randn(n_student, hidden, generator=generator)).requires_grad_()
        self._teacher_logits = drawn_logits(len(self._teacher_ids), n_teacher)
        self._map = rule_map(torch.from_numpy(vocabulary_map(teacher, student, n_teacher)).long())
        self._capture, self._chunk = params_of(REAL).profile.teacher, params_of(REAL).profile.train.chunk_tokens
        self._k = min(self._capture.k, n_teacher // 2)
        self._records = sparsify(
            self._teacher_logits,
            self._teacher_ids,
            self._k,
            self._capture.tail_samples,
            torch.full((len(self._teacher_ids),), 0.5),
        )

    def ours(self) -> None:
        """Targets from the rows, then the loss and its gradient."""
        starts, teacher_starts = (ends - lengths_of(ends) for ends in (self._student_ends, self._teacher_ends))
        has_target_N = torch.isin(starts, teacher_starts)
        place_A = torch.searchsorted(teacher_starts, starts[has_target_N])
        columns = {name: column[place_A] for name, column in vars(self._records).items()}
        target = sparse_target(
            teacher_rows(columns, len(self._map.student_ids) - self._k),
            has_target_N,
            self._map,
            1.0,
            "map_then_temper",
            "sampled",
            NextTokens(self._teacher_ids[place_A], self._student_ids[has_target_N]),
        )
        text = Text(self._student_ids, target, stretches(len(starts), self._chunk, target))
        head = OutputHead(self._weight_VD)
        found = text_loss(self._hidden_ND, head, text, LARGEST_KD_WEIGHT, torch.float32)
        found.loss.backward()
        self._hidden_ND.grad = self._weight_VD.grad = None

    def save(self, path: Path) -> None:
        """What theirs reads: the logits of both, the texts as ids and labels, and each token's bytes."""
        with torch.no_grad():
            tensors = {"student_logits": self._hidden_ND @ self._weight_VD.T, "teacher_logits": self._teacher_logits}
        for name, ids, ends in (
            ("student", self._student_ids, self._student_ends),
            ("teacher", self._teacher_ids, self._teacher_ends),
        ):
            tensors |= {f"{name}_labels": ids, f"{name}_input_ids": ids.clone()}
            tensors[f"{name}_byte_offsets"] = torch.stack([ends - lengths_of(ends), ends], -1)
        save_file({name: tensor[None].contiguous() for name, tensor in tensors.items()}, path)


def tokens_of(text: str, encoder: Encoder, n_tokens: int | None = None, n_bytes: int = 0) -> tuple[Tensor, Tensor]:
    """Ids of so many tokens of a text, or of those in its first bytes, and the byte each ends before, int64 [N]."""
    ids = torch.from_numpy(encode(encoder, [text[:20_000].encode()]).ids)
    ends = torch.from_numpy(encoder.token_bytes.lengths)[ids].cumsum(0)
    stop = n_tokens if n_tokens is not None else int((ends <= n_bytes).sum())
    return ids[:stop], ends[:stop]


def lengths_of(ends: Tensor) -> Tensor:
    return ends.diff(prepend=torch.zeros(1, dtype=ends.dtype))


def times_of_both(loss: Losses, python: str, rounds: int) -> Times:
    """CPU seconds of both in turn, after a round that does not count where theirs is short."""
    times = Times(cpu={"ours": [], "theirs": []}, wall={})
    with TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.safetensors"
        loss.save(inputs)
        with other_python(python, inputs) as ask:
            for number in range(rounds + (rounds > 1)):
                ours = interleave({"ours": loss.ours}, 1, warm=number == 0)
                theirs = ask()
                if number or rounds == 1:
                    times.cpu["ours"] += ours.cpu["ours"]
                    times.cpu["theirs"].append(theirs)
    return times


@contextmanager
def other_python(python: str, inputs: Path) -> Iterator[Callable[[], float]]:
    """A process that has trl and these inputs; asked, it does both passes once and says its CPU seconds."""
    command = [python, str(Path(__file__).with_name("uld_child.py")), str(inputs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        if stdout.readline().strip() != "ready":
            raise RuntimeError(f"{python} did not start the loss of trl: see above")

        def ask() -> float:
            print("again", file=stdin, flush=True)
            return float(stdout.readline())

        yield ask
        stdin.close()
