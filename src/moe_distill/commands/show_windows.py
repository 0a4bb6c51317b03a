"""`moe-distill plan --show N`: the first windows of the training text, with the aligned pieces of both tokenizers."""

from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray

from moe_distill.alignment.encode import Encoder, encode, make_encoder
from moe_distill.alignment.teacher_windows import teacher_windows
from moe_distill.alignment.window_limits import SplitCounts, WindowLimits
from moe_distill.config.profile import Windows
from moe_distill.corpus.documents import read_documents
from moe_distill.errors import DataError
from moe_distill.models.prefix_token import prefix_token_id
from moe_distill.models.tokenizer_files import load_tokenizer

TEXT = Path("data/corpus/train.parquet")
TEACHER, STUDENT = Path("models/teacher"), Path("models/student_init")
COLUMNS = 116
DOCUMENTS = 20  # of which the windows are shown


def show_windows(params: Windows, n_windows: int) -> Iterator[str]:
    """Yield lines: of each window its size, and its text in pieces that end where a token of both tokenizers ends.

    Raises:
        DataError: text or models are not here yet; names the command that makes them.
    """
    for path, stage in ((TEXT, "corpus"), (TEACHER, "models@teacher"), (STUDENT, "models@student")):
        if not path.exists():
            raise DataError(f"{path} is not here yet", fix=f"run: dvc repro {stage}")
    teacher, student = (
        make_encoder(tokenizer, prefix_token_id(folder, tokenizer), folder.name)
        for folder, tokenizer in ((TEACHER, load_tokenizer(TEACHER)), (STUDENT, load_tokenizer(STUDENT)))
    )
    limits = WindowLimits(params.teacher_max_length, params.student_max_length, params.shard_tokens)
    documents = list(islice((each for group in read_documents(TEXT) for each in group), DOCUMENTS))
    windows = teacher_windows(documents, 0, teacher, limits, SplitCounts())
    yield "a piece is [teacher's tokens = student's tokens] where they differ, · stands between the tokens of one"
    spans = list(zip(windows.window_starts.tolist(), windows.window_ends.tolist(), strict=True))[:n_windows]
    first = 0
    for number, ((start, stop), count) in enumerate(zip(spans, windows.window_counts.tolist(), strict=False), start=1):
        text = bytes(windows.text[start:stop])
        ends = _ends(teacher, windows.ids[first : first + count])
        first += count
        ids = encode(student, [text]).ids
        yield f"window {number}: {len(text):,} bytes, {count} tokens of the teacher, {len(ids)} of the student"
        yield from (f"  {line}" for line in wrap(_pieces(text, ends, _ends(student, ids)), COLUMNS))


def _ends(encoder: Encoder, ids: NDArray[np.int64]) -> list[int]:
    """Where each token ends, in bytes of the text."""
    ends: list[int] = np.cumsum(encoder.token_bytes.lengths[ids]).tolist()
    return ends


def _pieces(text: bytes, teacher: list[int], student: list[int]) -> str:
    """The text between neighbouring common ends of tokens, `|` between the pieces."""
    pieces, begin = list[str](), 0
    for end in sorted(set(teacher) & set(student)):
        one, other = (_tokens(text, begin, end, ends) for ends in (teacher, student))
        pieces.append(one if one == other else f"[{one} = {other}]")
        begin = end
    return "|".join(pieces)


def _tokens(text: bytes, begin: int, end: int, ends: list[int]) -> str:
    """A piece with `·` between its tokens; blanks visible, since the line is wrapped at its own."""
    inner = [begin, *(each for each in ends if begin < each < end), end]
    tokens = (text[start:stop].decode("utf-8", "backslashreplace") for start, stop in pairwise(inner))
    return "·".join(token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "→") for token in tokens)
