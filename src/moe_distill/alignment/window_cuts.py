"""Cut token sequences into windows that are short enough for a model.

The tokens of several texts lie one after the other; `counts` has the number of each text, 0 for a skipped one. Cuts are
numbers of tokens, counted over all texts: a window [start, end) ends after token `end - 1`.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_distill.alignment.boundaries import Flags, Offsets, code_point_boundaries, token_starts
from moe_distill.alignment.encode import Encoded, Encoder, without


@dataclass(frozen=True)
class Layout:
    """Places of the tokens of several texts, in bytes of all texts joined."""

    encoded: Encoded  # without the texts in `uncut`
    starts: Offsets  # [tokens]
    ends: Offsets  # [tokens]
    between_characters: Flags  # [tokens]: whether the token ends between two characters
    uncut: list[tuple[int, int]]  # texts that cannot be cut: number, and first byte of a stretch without a cut


def lay_out(encoder: Encoder, encoded: Encoded, text: bytes, text_starts: Offsets, max_tokens: int) -> Layout:
    """Lay out tokens, and leave out texts with a stretch of over `max_tokens` where none ends between two characters.

    Qwen3's tokenizer gives such a stretch for a long run of some Korean syllables: tokens reach from one to the next.

    Args:
        text: all texts, joined.
        text_starts: byte at which each text begins in it.
    """
    lengths = encoder.token_bytes.lengths[encoded.ids]
    starts = token_starts(lengths, text_starts, encoded.counts)
    ends = starts + lengths
    between_characters = code_point_boundaries(text)[ends]
    texts, tokens = uncuttable(encoded.counts, between_characters, max_tokens)
    if not len(texts):
        return Layout(encoded, starts, ends, between_characters, [])
    offsets = starts[tokens] - text_starts[texts]
    others = lay_out(encoder, without(encoded, texts.tolist()), text, text_starts, max_tokens)
    return replace(others, uncut=list(zip(texts.tolist(), offsets.tolist(), strict=True)))


def uncuttable(counts: Offsets, may_cut: Flags, max_tokens: int) -> tuple[Offsets, Offsets]:
    """The texts in which two neighbouring cuts are more than `max_tokens` apart.

    Args:
        counts: [texts] tokens of each text.
        may_cut: [tokens]; True where a window may end after this token; True for the last one of each text.

    Returns:
        Their numbers [uncuttable texts], and the first token of the first such stretch in each.
    """
    after_cut = np.append(0, np.flatnonzero(may_cut) + 1)
    first_tokens = after_cut[:-1][np.diff(after_cut) > max_tokens]
    texts, first = np.unique(np.searchsorted(np.cumsum(counts), first_tokens, side="right"), return_index=True)
    return texts, first_tokens[first]


def cut(counts: Offsets, may_cut: Flags, max_tokens: int) -> Offsets:
    """Cut greedily: each window gets as many tokens as it may hold, up to a place where a cut is allowed.

    No text may be `uncuttable`.

    Args:
        counts: [texts] tokens of each text.
        may_cut: [tokens]; True where a window may end after this token; True for the last one of each text.
        max_tokens: tokens a window may hold.

    Returns:
        The window ends, int64 [windows].
    """
    latest = np.maximum.accumulate(np.where(may_cut, np.arange(1, len(may_cut) + 1), 0))
    ends: list[int] = []
    start = 0
    for stop in np.cumsum(counts).tolist():
        while start < stop:
            start = int(latest[min(start + max_tokens, stop) - 1])
            ends.append(start)
    return np.array(ends, dtype=np.int64)


def split_evenly(counts: Offsets, preferred: Flags, allowed: Flags, max_tokens: int) -> tuple[Offsets, int]:
    """Cut each text into few windows of nearly equal length, at the preferred cuts nearest to evenly spaced places.

    Where two neighbouring preferred cuts are more than `max_tokens` apart, the allowed cuts between them are used too.
    No text may be `uncuttable`.

    Args:
        counts: [texts] tokens of each text.
        preferred, allowed: [tokens]; whether a window may end after this token; preferred ones are allowed, and
            the last token of each text is both.
        max_tokens: tokens a window may hold.

    Returns:
        The window ends, int64 [windows], and how many of them are allowed but not preferred.
    """
    distances = np.diff(np.flatnonzero(preferred), prepend=-1)
    out_of_reach = np.repeat(distances > max_tokens, distances)
    cuts = np.flatnonzero(np.append(True, preferred | (allowed & out_of_reach)))
    midpoints = (cuts[1:] + cuts[:-1]) / 2
    stops = np.cumsum(counts)
    pieces = -(-counts // max_tokens)
    # Too long a window gives its text one piece more. The loop ends at the latest when even places are max_tokens / 2
    # apart, for then no window is too long.
    while True:
        ends = np.unique(cuts[np.searchsorted(midpoints, _even_places(counts, pieces))])
        too_long = ends[np.diff(ends, prepend=0) > max_tokens]
        if not len(too_long):
            break
        pieces[np.unique(np.searchsorted(stops, too_long))] += 1
    ends = ends[ends > 0]  # 0 is the cut before the first text
    return ends, int((~preferred[ends - 1]).sum())


def _even_places(counts: Offsets, pieces: Offsets) -> NDArray[np.float64]:
    """Evenly spaced ends of the pieces of each text, which may lie inside tokens: [sum of pieces]."""
    owners = np.repeat(np.arange(len(counts)), pieces)
    number = np.arange(1, len(owners) + 1) - (np.cumsum(pieces) - pieces)[owners]
    starts = (np.cumsum(counts) - counts)[owners]
    places: NDArray[np.float64] = starts + number * counts[owners] / pieces[owners]
    return places
