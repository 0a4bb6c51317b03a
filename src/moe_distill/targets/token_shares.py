"""Where a teacher token's probability goes in the student's vocabulary.

The vocabulary map gives each teacher id the student token that its bytes alone begin with. In running text the
student's next token often reaches beyond the teacher's ("con|figuration" for the teacher, "configuration" for the
student), and then that rule names a token which the student never meets. The training text shows what really follows:
how often the student's next token is s where the teacher's is t, both beginning at the same byte. Those counts, with
the rule as one more observation, are the shares by which t's probability is handed out. Each row of shares sums to 1,
so mass is conserved; where text and rule agree, the share of the rule is 1.

Shapes: R rows of the teacher's output matrix, V student vocabulary, J student tokens of a teacher id, Q pairs that
were counted, X pairs of one of them and a student token of it.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from moe_distill.targets.canonical import MergeRules
from moe_distill.targets.sparse_rows import pair_keys, pairs_of

MAX_STUDENT_TOKENS = 16  # J: student tokens that a teacher id's probability is handed out to
RULE_COUNT = 1.0  # observations that the rule is worth


@dataclass(frozen=True)
class NextTokenCounts:
    """Pairs of next tokens at aligned positions of a text, each pair once, int64 [Q]."""

    teacher_ids: Tensor
    student_ids: Tensor
    counts: Tensor


@dataclass(frozen=True)
class StudentPairs:
    """A list of teacher ids spread over student tokens, [X]: one element for each student token of each teacher id.

    A teacher id that maps to nothing has no element.
    """

    sources: Tensor  # int64: number of the teacher id in the list, ascending
    student_ids: Tensor  # int64
    log_shares: Tensor  # fp32


@dataclass(frozen=True)
class VocabularyMap:
    """Student ids and shares of each teacher id, largest share first, and how often each id is met."""

    student_ids: Tensor  # int64 [R, J]; 0 where there is none
    log_shares: Tensor  # fp32 [R, J]; -inf where there is none; a mapped row's shares sum to 1
    frequencies: Tensor  # fp32 [R]: of the mapped teacher ids as next tokens of the text, each met once more; sum 1
    student_frequencies: Tensor  # fp32 [V]: the same, handed out by the shares
    merges: MergeRules | None = None  # of the student's tokenizer; None: nothing is known of them
    beginnings: "TokenBeginnings | None" = None  # of the teacher's tokens; None: not asked for, or there are none

    def mapped_to_student(self, teacher_ids: Tensor) -> "StudentPairs":
        """Spread a flat list of teacher ids over their student tokens, with the share of each.

        Args:
            teacher_ids: int64, one-dimensional.
        """
        log_shares = self.log_shares[teacher_ids]
        sources_X, ranks_X = (log_shares > float("-inf")).nonzero(as_tuple=True)
        student_ids_X = self.student_ids[teacher_ids[sources_X], ranks_X]
        return StudentPairs(sources_X, student_ids_X, log_shares[sources_X, ranks_X])

    @property
    def likeliest(self) -> Tensor:
        """The student id with the largest share of each teacher id, int64 [R]; -1: no student token."""
        return self.student_ids[:, 0].masked_fill(self.log_shares[:, 0] == float("-inf"), -1)


@dataclass(frozen=True)
class TokenBeginnings:
    """How each teacher token may begin, and where the probability of what may be left of it goes.

    The beginnings of a token lie one after the other, the shortest first.
    """

    n_bytes: Tensor  # int64 [R]: bytes of each teacher id, and beginnings; 0 where it stands for no text
    numbers: Tensor  # int64 [beginnings]: equal where the bytes are
    rests: Tensor  # int64 [beginnings]: number of the string that is left; -1: nothing is
    rest_map: VocabularyMap  # of those strings, by their number
    merges: MergeRules  # of the student's tokenizer, without trials

    @cached_property
    def _first_places(self) -> Tensor:
        return self.n_bytes.cumsum(0) - self.n_bytes

    def places(self, teacher_ids: Tensor, n_read: Tensor) -> Tensor:
        """Where the first `n_read` bytes of some tokens stand in the lists; -1: the token is shorter."""
        return (self._first_places[teacher_ids] + n_read - 1).masked_fill(self.n_bytes[teacher_ids] < n_read, -1)


def rule_map(rule_ids_R: Tensor) -> VocabularyMap:
    """The map by bytes alone: each teacher id has one student id with a share of 1, or none (-1).

    All mapped teacher ids count as equally frequent.
    """
    is_mapped_R = rule_ids_R >= 0
    log_shares_R = torch.where(is_mapped_R, 0.0, float("-inf"))
    return _with_frequencies(rule_ids_R.clamp_min(0)[:, None], log_shares_R[:, None], is_mapped_R.float())


def counted_shares(rule_ids_R: Tensor, next_tokens: NextTokenCounts) -> VocabularyMap:
    """Shares by how often each pair of next tokens stands in the training text, the rule counting as one more time.

    A teacher id that the rule maps to nothing keeps mapping to nothing.

    Args:
        rule_ids_R: student id of each teacher id by its bytes alone, -1: none.
    """
    mapped = (rule_ids_R >= 0).nonzero().squeeze(1)
    known = rule_ids_R[next_tokens.teacher_ids] >= 0
    teacher_ids = torch.cat([mapped, next_tokens.teacher_ids[known]])
    student_ids = torch.cat([rule_ids_R[mapped], next_tokens.student_ids[known]])
    counts = torch.cat([torch.full((len(mapped),), RULE_COUNT), next_tokens.counts[known].float()])
    keys_Q, place = pair_keys(teacher_ids, student_ids).unique(return_inverse=True)
    counts_Q = torch.zeros(len(keys_Q)).index_add(0, place, counts)
    return _largest(*pairs_of(keys_Q), counts_Q, len(rule_ids_R))


def _largest(teacher_ids_Q: Tensor, student_ids_Q: Tensor, counts_Q: Tensor, n_rows: int) -> VocabularyMap:
    """The J largest counts of each teacher id, as shares of their sum."""
    by_count = counts_Q.argsort(descending=True, stable=True)
    order = by_count[teacher_ids_Q[by_count].argsort(stable=True)]
    teacher, n_pairs = teacher_ids_Q[order], torch.bincount(teacher_ids_Q, minlength=n_rows)
    rank = torch.arange(len(order)) - (n_pairs.cumsum(0) - n_pairs)[teacher]
    kept = rank < MAX_STUDENT_TOKENS
    place = (teacher[kept], rank[kept])
    student_ids = torch.zeros(n_rows, MAX_STUDENT_TOKENS, dtype=torch.int64)
    counts = torch.zeros(n_rows, MAX_STUDENT_TOKENS)
    student_ids[place] = student_ids_Q[order[kept]]
    counts[place] = counts_Q[order[kept]]
    log_shares = (counts / counts.sum(-1, keepdim=True).clamp_min(1e-30)).log()
    return _with_frequencies(student_ids, log_shares, torch.zeros(n_rows).index_add(0, teacher_ids_Q, counts_Q))


def _with_frequencies(student_ids_RJ: Tensor, log_shares_RJ: Tensor, counts_R: Tensor) -> VocabularyMap:
    frequencies_R = counts_R / counts_R.sum().clamp_min(1.0)
    handed_RJ = frequencies_R[:, None] * log_shares_RJ.exp()
    n_student_ids = int(student_ids_RJ.max()) + 1
    student_frequencies_V = torch.zeros(n_student_ids).index_add(0, student_ids_RJ.flatten(), handed_RJ.flatten())
    return VocabularyMap(student_ids_RJ, log_shares_RJ, frequencies_R, student_frequencies_V)
