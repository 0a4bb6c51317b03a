"""`kd_positions: auto`: what the teacher's last token says of the student's next one, whether or not it has ended.

After some bytes of text the teacher's last token may have ended, or go on: longer tokens that begin with the same bytes
were as possible, and the row before that token says how likely each was. The text shows which it is, but the student
cannot know: a target that says the one case alone teaches where teacher tokens end, by heart. So both cases are in it:

* it goes on: each longer token's share goes to the student's token of the bytes that are left, by counts over the
  training text as at common boundaries, where the counts nearly agree on one; that of the token that follows in the
  text to the text's own next token;
* it ends here. At a common boundary the next row says what follows, and has this share. Inside the token nothing is
  known of it: it is in one bucket with all that is not listed.

What the student's tokenizer would have joined to its last token is left out, in both. So is, at a common boundary, what
cannot be told: where a line ends, the student's token has the next line's indentation in it, which the row does not
know. Shares are of the kept tokens and the text's own: the tail's samples are too few to tell of single tokens.

All of this is at T = 1: what a tempered bucket would hold is not known.

Shapes: N positions, P of them with a last token, K kept logits, C = K + 1, X candidates of all positions in one list,
Z entries.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_distill.errors import DataError
from moe_distill.shards.window_store import WindowStore
from moe_distill.targets.canonical import noncanonical
from moe_distill.targets.sparse_rows import NEGATIVE_INFINITY, Entries, grouped_logsumexp, merged
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.teacher_rows import TeacherRows
from moe_distill.targets.token_shares import TokenBeginnings

LAST_FIELDS = ("last_teacher_rows", "last_teacher_ids", "last_teacher_bytes")  # of the student's windows
LEAST_SHARE = 1e-3  # of a teacher token that is handed out, of those that begin as the text does
SURE_SHARE = 0.8  # of the student's likeliest token of what is left; where it has less, nothing is told of it


@dataclass(frozen=True)
class LastTokens:
    """The teacher's last token before each of P positions, and the student's tokens around the position, int64 [P]."""

    rows: TeacherRows  # what the teacher said before that token
    ids: Tensor
    n_read: Tensor  # of its bytes, those before the position
    previous_ids: Tensor
    next_ids: Tensor


@dataclass(frozen=True)
class Continuations:
    """By which of the student's tokens the teacher's last token goes on."""

    is_inside_P: Tensor  # bool: by the text it does
    entries: Entries  # by position
    rest_P: Tensor  # the probability of all else; it and the entries of a position sum to 1


def check_last_tokens(windows: WindowStore, beginnings: TokenBeginnings) -> None:
    """Refuse student positions that have read more of the teacher's last token than it has, or nothing.

    Raises:
        DataError: there is one; names the row.
    """
    reader = windows.reader
    for number in range(len(reader.index.files)):
        ids, n_read = (reader.column(name, number).long() for name in LAST_FIELDS[1:])
        n_bytes = beginnings.n_bytes[ids].masked_fill(ids < 0, 0)
        wrong = ((n_read > n_bytes) | (n_read < n_bytes.clamp_max(1))).nonzero()
        if len(wrong):
            row = int(wrong[0])
            place = f"{reader.path(number)}: row {reader.first_row('tokens', number) + row} of tokens"
            raise DataError(
                f"{place} has last_teacher_bytes {int(n_read[row])}",
                f"its last_teacher_ids {int(ids[row])} is of {int(n_bytes[row])} bytes",
                reader.fix,
            )


def continuations(last: LastTokens, beginnings: TokenBeginnings) -> Continuations:
    """How the teacher's last token may go on."""
    candidates = _that_begin_alike(last, beginnings)
    places_X = beginnings.places(candidates.ids, last.n_read[candidates.rows])
    rests_X, ended_P = beginnings.rests[places_X], torch.zeros(len(last.ids))
    ended_P.index_add_(0, candidates.rows, candidates.logprobs.exp() * (rests_X < 0))
    is_text_X = (candidates.ids == last.ids[candidates.rows]) & (rests_X >= 0)
    is_sure_X = beginnings.rest_map.log_shares[rests_X.clamp_min(0), 0] >= math.log(SURE_SHARE)
    is_told_X = ~is_text_X & (rests_X >= 0) & is_sure_X & (candidates.logprobs > math.log(LEAST_SHARE))
    pairs = beginnings.rest_map.mapped_to_student(rests_X[is_told_X])
    rows_X, logprobs_X = (each[is_told_X][pairs.sources] for each in (candidates.rows, candidates.logprobs))
    text_rows = candidates.rows[is_text_X]
    entries = merged(
        torch.cat([rows_X, text_rows]),
        torch.cat([pairs.student_ids, last.next_ids[text_rows]]),
        torch.cat([logprobs_X + pairs.log_shares, candidates.logprobs[is_text_X]]),
    )
    is_inside_P = beginnings.rests[beginnings.places(last.ids, last.n_read)] >= 0
    rest_P = torch.where(is_inside_P, (1.0 - _masses(entries, len(ended_P))).clamp_min(0.0), ended_P)
    entries = entries.without(noncanonical(beginnings.merges, entries, last.previous_ids, last.next_ids))
    total_P = rest_P + _masses(entries, len(rest_P))
    entries = replace(entries, logprobs=entries.logprobs - total_P.log()[entries.rows])
    # A token that has underflowed, and of which nothing else is left: as if it had ended
    return Continuations(is_inside_P, entries, torch.where(total_P > 0.0, rest_P / total_P, 1.0))


def with_continuations(target: SparseTarget, positions_P: Tensor, found: Continuations) -> SparseTarget:
    """A target at T = 1 in which the teacher's last token goes on, too.

    Args:
        positions_P: int64; where there is a last token.
    """
    inside, ended = positions_P[found.is_inside_P], positions_P[~found.is_inside_P]
    is_inside_N = torch.zeros_like(target.has_target_N).index_fill(0, inside, True)
    ended_N = torch.ones_like(target.residual_N).index_copy(0, ended, found.rest_P[~found.is_inside_P])
    entry_positions_Z, sample_positions_Y = target.entry_positions_Z.long(), target.sample_positions_Y.long()
    entries = merged(
        torch.cat([entry_positions_Z, positions_P[found.entries.rows]]),
        torch.cat([target.entry_ids_Z.long(), found.entries.ids]),
        torch.cat([(target.entry_probs_Z * ended_N[entry_positions_Z]).log(), found.entries.logprobs]),
    )
    residual_N = (target.residual_N * ended_N).index_copy(0, inside, found.rest_P[found.is_inside_P])
    listed_mass_N = target.listed_mass_N * ended_N + (1.0 - ended_N)
    return replace(
        target,
        has_target_N=target.has_target_N | is_inside_N,
        has_bucket_N=target.has_bucket_N | is_inside_N,
        residual_N=residual_N,
        listed_mass_N=torch.where(is_inside_N, 1.0 - residual_N, listed_mass_N),
        entry_positions_Z=entries.rows.int(),
        entry_ids_Z=entries.ids.int(),
        entry_probs_Z=entries.logprobs.exp(),
        sample_probs_Y=target.sample_probs_Y * ended_N[sample_positions_Y],
    )


def _that_begin_alike(last: LastTokens, beginnings: TokenBeginnings) -> Entries:
    """Teacher tokens that begin with the bytes that were read of the last one, with their shares; itself among them."""
    own_P1 = last.ids[:, None]
    ids_PC = torch.cat([last.rows.topk_ids, own_P1], dim=1)
    others_PK = last.rows.topk_logprobs.masked_fill(last.rows.topk_ids == own_P1, NEGATIVE_INFINITY)
    logprobs_PC = torch.cat([others_PK, last.rows.target_logprob[:, None]], dim=1)
    numbers_PC = _numbers(beginnings, ids_PC, last.n_read[:, None])
    begins_PC = numbers_PC == _numbers(beginnings, own_P1, last.n_read[:, None])
    found = merged(begins_PC.nonzero()[:, 0], ids_PC[begins_PC], logprobs_PC[begins_PC])
    total_P = grouped_logsumexp(found.logprobs, found.rows, len(last.ids))
    return replace(found, logprobs=found.logprobs - total_P[found.rows])


def _numbers(beginnings: TokenBeginnings, ids: Tensor, n_read: Tensor) -> Tensor:
    """The number of the first bytes of some tokens; -1: the token is shorter."""
    places = beginnings.places(ids, n_read)
    return beginnings.numbers[places].masked_fill(places < 0, -1)


def _masses(entries: Entries, n_rows: int) -> Tensor:
    """The probability of each row's entries."""
    return torch.zeros(n_rows).index_add(0, entries.rows, entries.logprobs.exp())
