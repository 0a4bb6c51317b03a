"""Limits of the windows of a split, counts of what the split holds, and lines about skipped documents."""

from dataclasses import dataclass, field

from moe_distill.corpus.documents import Document

PURPOSE = "distil"  # of the hash fraction that chooses documents for distillation


@dataclass(frozen=True)
class Cut:
    """The document inside which a limit on the windows of a split ends; it has the highest hash fraction of all."""

    hash_fraction: float
    windows: int  # its first ones, which are kept


@dataclass(frozen=True)
class WindowLimits:
    """Limits of the windows of a split and of their files."""

    teacher_max_length: int  # tokens of a window, prefix token included
    student_max_length: int
    shard_tokens: int  # tokens of a shard file
    cut: Cut | None = None  # None: every document keeps all its windows


@dataclass
class SplitCounts:
    """Counts of one split."""

    windows: int = 0  # of the teacher
    student_windows: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0
    aligned: int = 0  # student positions with an aligned teacher position
    one_to_one: int = 0  # aligned positions where both next tokens span the same bytes
    shorter_context: int = 0  # aligned positions in a student window that begins after the teacher's: it has read less
    overhanging: int = 0  # aligned positions where the student's next token ends after the teacher's
    forced_cuts: int = 0  # student windows that end where the teacher's tokens do not
    skipped: list[str] = field(default_factory=list)  # a line for each skipped document


SPELL = "spell"  # for `skipped_line`: the tokens do not spell the text


def skipped_line(name: str, document: Document, what: str, offset: int) -> str:
    """A line about a skipped document: the tokenizer `name` cannot do `what` at byte `offset`."""
    return f"{document.source} document {document.document_id[:12]}: {name} cannot {what} byte {offset}"


def no_cut(max_tokens: int) -> str:
    """For `skipped_line`: no window of at most `max_tokens` tokens ends between two characters."""
    return f"end a token between characters within {max_tokens} tokens of"
