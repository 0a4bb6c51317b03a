"""Whether a tokenizer ever writes two of its tokens side by side: it is given both texts, between others, and asked.

Merge rules know no pre-tokenizer, which keeps texts apart that they would merge: digits in groups of three, a quote
before a word, a word before a mark, the last space of a run. Where it cuts can depend on what stands before and after:
"12" comes before "345" where a digit precedes it that "12" is not joined to. So a pair is tried between several texts,
and one in which the tokenizer writes both tokens is enough.

Between most letters no text cuts. That is asked once for the last character of the one token and the first of the
other, and so are the texts that are worth a trial. A token may hold a part of a character: then others complete it, and
it is enough that the tokenizer cuts there. Inside a character nothing cuts.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import product

from tokenizers import Tokenizer

MOST_KEPT = 1 << 18  # verdicts that are kept, some 100 bytes each; all are forgotten when there are more

_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_BEFORE = (
    *("x", "X", " ", "\n", "'r", "'v", "'l", "x'", "e'", "x'r", "x'v", "x'l", "''", ". ", "  ", "\n "),
    *_PUNCTUATION,
    *"0123456789",
    *("10", "123"),
    *("é", "я", "א", "\u0627", "ก", "中", "あ", "한", "“", "—", "…", "、", "€", "🙂", "\u0301"),
)
_AFTER = ("x", "X", "xx", "1", "12", "123", " ", " x", "\n", "\n x", ".", "'", "é", "я", "\u0627", "ก", "中", "\u0301")
_PLAIN = tuple(product(("", "x", " ", "."), ("", "x", " x", "1")))
_TWO_DIGITS = tuple(f"{number:02}" for number in range(100))
_TEXTS = (*_PLAIN, *((before, "") for before in _BEFORE), *product(("", "x"), _AFTER))
_CODE_POINTS = (*range(0x80, 0xD800), *range(0xE000, 0x10000), *range(0x1F000, 0x1FB00))


class NeighbourTrials:
    """Verdicts on pairs of one tokenizer's ids, kept. A verdict depends on tokenizer and pair alone.

    Args:
        tokenizer: that adds nothing to a text.
        spellings: the bytes of each id; empty where it stands for no text.
    """

    def __init__(self, tokenizer: Tokenizer, spellings: Sequence[bytes]) -> None:
        self.tokenizer, self._spellings = tokenizer, spellings
        self._lengths = [len(spelling) for spelling in spellings]
        self._kept: dict[tuple[int, int], bool] = {}
        self._kept_texts: dict[str, tuple[tuple[str, str], ...]] = {}

    def ever_written(self, first: int, second: int) -> bool:
        """Whether there is a text in which the tokenizer writes the second id after the first."""
        pair = first, second
        if pair not in self._kept:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
                self._kept_texts.clear()
            self._kept[pair] = self._ever_written(first, second)
        return self._kept[pair]

    def _ever_written(self, first: int, second: int) -> bool:
        left, right = self._spellings[first], self._spellings[second]
        if not left or not right or _is_continuation(right[0]):
            return False
        before, after = _text(left), _text(right)
        if before is None or after is None:
            wanted = None if before is None else first, None if after is None else second
            texts = product(_completed_before(left), _completed_after(right))
            return any(self._is_written(*each, *wanted) for each in texts)
        parting = self._texts_that_part(before[-1], after[0])
        if not parting and before.strip().isalpha() and after.isalpha():
            return False
        # The tokens bring some of what stands before the last character and after the first one themselves
        shorter = ((start[: max(0, len(start) - len(before) + 1)], end[len(after) - 1 :]) for start, end in parting)
        tried = dict.fromkeys((*_PLAIN, *parting, *shorter))
        return any(self._is_written(start + before, after + end, first, second) for start, end in tried)

    def _texts_that_part(self, last: str, following: str) -> tuple[tuple[str, str], ...]:
        """What stands before and after where the tokenizer cuts between two characters."""
        both = last + following
        if both not in self._kept_texts:
            texts = list(_TEXTS)
            texts += [(digits, "") for digits in _TWO_DIGITS if last.isdecimal()]
            texts += [("", digits) for digits in _TWO_DIGITS if following.isdecimal()]
            parting = [each for each in dict.fromkeys(texts) if self._parts(each[0] + last, following + each[1])]
            self._kept_texts[both] = tuple(parting)
        return self._kept_texts[both]

    def _parts(self, left: str, right: str) -> bool:
        return self._is_written(left, right, None, None)

    def _is_written(self, left: str, right: str, first: int | None, second: int | None) -> bool:
        """Whether the tokenizer ends the left text with the first id and begins the right one with the second.

        Where one of them is None, the pre-tokenizer must cut there.
        """
        encoding = self.tokenizer.encode(left + right, add_special_tokens=False)
        ids, rest, place = encoding.ids, len(left.encode()), 0
        while rest > 0 and place < len(ids):
            rest -= self._lengths[ids[place]]
            place += 1
        if rest or not 0 < place < len(ids):
            return False
        if (first is None or second is None) and encoding.word_ids[place - 1] == encoding.word_ids[place]:
            return False
        return first in (None, ids[place - 1]) and second in (None, ids[place])


def _is_continuation(byte: int) -> bool:
    return byte & 0xC0 == 0x80


def _text(spelling: bytes) -> str | None:
    """The text of whole characters, else None."""
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return None


def _completed_before(spelling: bytes) -> list[str]:
    """Texts that end with these bytes: a character of each kind where they begin inside one."""
    n_inside = next((place for place, byte in enumerate(spelling) if not _is_continuation(byte)), len(spelling))
    if not n_inside:
        return [start + spelling.decode() for start in ("", "x", " ", ".")]
    rest = _text(spelling[n_inside:])
    return [] if rest is None else [start + rest for start in _characters()[1].get(spelling[:n_inside], ())]


def _completed_after(spelling: bytes) -> list[str]:
    """Texts that begin with these bytes: a character of each kind where they end inside one."""
    whole = _text(spelling)
    if whole is not None:
        return [whole + end for end in ("", "x", " x")]
    n_inside = next(n for n in (1, 2, 3) if not _is_continuation(spelling[-n]))
    rest = spelling[:-n_inside].decode()
    return [rest + end for end in _characters()[0].get(spelling[-n_inside:], ())]


@cache
def _characters() -> tuple[dict[bytes, list[str]], dict[bytes, list[str]]]:
    """Characters by their first bytes, and by their last ones: of each category and script, one."""
    by_start: dict[bytes, dict[tuple[str, str], str]] = {}
    by_end: dict[bytes, dict[tuple[str, str], str]] = {}
    for character in map(chr, _CODE_POINTS):
        kind = unicodedata.category(character), unicodedata.name(character, "").partition(" ")[0]
        spelling = character.encode()
        for place in range(1, len(spelling) if kind[0] != "Cn" else 0):
            by_start.setdefault(spelling[:place], {}).setdefault(kind, character)
            by_end.setdefault(spelling[place:], {}).setdefault(kind, character)
    starts, ends = ({key: list(found.values()) for key, found in each.items()} for each in (by_start, by_end))
    return starts, ends
