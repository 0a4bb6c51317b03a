"""What bounds the windows of a split, and what the split came to."""

from dataclasses import dataclass, field

from moe_distill.corpus.documents import Document


@dataclass(frozen=True)
class WindowLimits:
    """Tokens a window may have, prefix token included, and how windows are filed."""

    teacher_max_length: int
    student_max_length: int
    shard_tokens: int
    max_windows: int | None


@dataclass
class Tally:
    """What one split came to."""

    windows: int = 0  # of the teacher
    student_windows: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0
    aligned: int = 0  # student positions with an aligned teacher position
    one_to_one: int = 0  # of them, those whose next tokens span the same bytes
    longer: int = 0  # of them, those whose next student token is longer than the teacher's
    forced_cuts: int = 0  # student windows that end where the teacher's tokens do not
    lost: list[str] = field(default_factory=list)  # one line a document that a tokenizer cannot spell or cut


SPELL = "spell"


def lost_line(name: str, document: Document, what: str, offset: int) -> str:
    """`what` the tokenizer `name` cannot do at byte `offset` of a document."""
    return f"{document.source} document {document.document_id[:12]}: {name} cannot {what} byte {offset}"


def no_cut(max_tokens: int) -> str:
    return f"end a token between characters within {max_tokens} tokens of"
