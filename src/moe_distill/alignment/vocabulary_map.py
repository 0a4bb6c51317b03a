"""Map each teacher id to the student id that gets its probability.

A teacher token is mapped by its bytes: to the student token of the same bytes where there is one; else to the first
token of the student's own segmentation of those bytes; else, for fragments of characters, to the longest student token
that they begin with; else to none. The probability of a student token is the sum over the teacher tokens that map to
it, and the probability that maps to none is known. Ids and decoded strings of the two tokenizers are never compared.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moe_distill.alignment.encode import Encoder, encode

UNMAPPED = -1


def vocabulary_map(teacher: Encoder, student: Encoder, output_rows: int) -> NDArray[np.int32]:
    """The student id of each row of the teacher's output matrix, or -1: int32 [output_rows].

    Args:
        output_rows: at least the ids of the teacher's tokenizer; further rows have no token.
    """
    by_bytes = student.token_bytes.by_bytes()
    result = np.full(output_rows, UNMAPPED, dtype=np.int32)
    remaining: list[tuple[int, bytes]] = []
    for teacher_id, token in enumerate(teacher.token_bytes.table):
        if token is None:
            continue
        exact = by_bytes.get(token)
        if exact is None:
            remaining.append((teacher_id, token))
        else:
            result[teacher_id] = exact
    if remaining:
        teacher_ids, tokens = zip(*remaining, strict=True)
        result[list(teacher_ids)] = first_student_ids(student, tokens)
    return result


def first_student_ids(student: Encoder, texts: Sequence[bytes]) -> NDArray[np.int32]:
    """The first student token of each text: of its segmentation, else the longest that it begins with, else -1."""
    by_bytes = student.token_bytes.by_bytes()
    first = zip(texts, _first_of_segmentation(student, texts), strict=True)
    found = [longest_prefix(by_bytes, text) if student_id is None else student_id for text, student_id in first]
    return np.array(found, dtype=np.int32)


def exact_vocabulary_share(teacher: Encoder, student: Encoder) -> float:
    """Share of the student's ids whose bytes are also a token of the teacher."""
    known = set(teacher.token_bytes.by_bytes())
    shared = sum(token in known for token in student.token_bytes.by_bytes())
    return shared / len(student.token_bytes.table)


def _first_of_segmentation(student: Encoder, tokens: Sequence[bytes]) -> list[int | None]:
    """The first token of each text's segmentation; None where bytes are no UTF-8 or the student cannot spell them."""
    first: list[int | None] = [None] * len(tokens)
    of_text = [number for number, token in enumerate(tokens) if _is_text(token)]
    encoded = encode(student, [tokens[number] for number in of_text])
    starts = np.cumsum(encoded.counts) - encoded.counts
    for number, start, n_tokens in zip(of_text, starts.tolist(), encoded.counts.tolist(), strict=True):
        if n_tokens:
            first[number] = int(encoded.ids[start])
    return first


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def longest_prefix(by_bytes: dict[bytes, int], token: bytes) -> int:
    """Id of the longest token that the bytes `token` begin with, or that equals them; -1: there is none."""
    lengths = range(len(token), 0, -1)
    return next((by_bytes[token[:length]] for length in lengths if token[:length] in by_bytes), UNMAPPED)
