"""Which tokens may follow one another in the student's own segmentation of a text.

The teacher does not know that one of the student's tokens ends here. Part of its probability goes to texts that the
student would have cut elsewhere: after "con" the student never reads "fig" where its tokenizer has "config". Given
that its token did end here, that probability is 0, and the rest is renormalised: of all ways to cut a text the student
reads the canonical one alone (Vieira et al. 2025, "Language models over canonical byte-pair encodings").

BPE (Sennrich et al. 2016) applies the merge of lowest rank first, the leftmost of equal ones, so each token lives from
the rank of the merge that makes it to the rank of the merge that uses it up. Where two texts meet, the tokens on both
sides of the border are the right spine of the one's tree and the left spine of the other's. The border falls if, while
two of them stand there, a merge of the two is due before either is used up.

A pre-tokenizer may keep texts apart that these rules would merge. So what the training text has is allowed, and for
every other pair that the rules deny the tokenizer itself is asked (targets/neighbour_trials), once.

Shapes: N positions, Z entries, V student vocabulary, X pairs, Q merges.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_distill.shards.vocabulary_store import Merges
from moe_distill.targets.neighbour_trials import NeighbourTrials
from moe_distill.targets.sparse_rows import Entries, index_of, pair_keys, pairs_of

NEVER = torch.iinfo(torch.int64).max  # rank of a merge that no rule makes
LEAST_PROB = 1e-3  # of an entry, at T = 1, that is asked about: each of the others is too small to matter
NO_TOKEN = -1  # before the first token of a window: its prefix token is joined to no text, even where it is one of text
MOST_GONE = 0.9  # of a row whose next token is not known; where more would go, it is left whole


@dataclass(frozen=True)
class MergeRules:
    """The student's merges, looked up by token and by pair, and the pairs of its text that they would deny."""

    ranks: Tensor  # int64 [V]: of the merge that makes a token; -1: none does
    lefts: Tensor  # int64 [V]: what that merge joins
    rights: Tensor  # int64 [V]
    pairs: Tensor  # int64 [Q]: what merges at a border, as `pair_keys`, ascending
    pair_ranks: Tensor  # int64 [Q]
    met: Tensor  # int64: pairs of the text that the rules deny, as `pair_keys`, ascending
    trials: NeighbourTrials | None = None  # of the tokenizer; None: the rules alone decide


def merge_rules(merges: Merges, n_ids: int) -> MergeRules:
    """Rules from a tokenizer's merges, of which there is at least one; each token is made by one merge at most."""
    ranks_Q, zeros_V = torch.arange(len(merges.results)), torch.zeros(n_ids, dtype=torch.int64)
    pairs, order = pair_keys(merges.lefts, merges.rights).sort()
    return MergeRules(
        ranks=(zeros_V - 1).index_copy(0, merges.results, ranks_Q),
        lefts=zeros_V.index_copy(0, merges.results, merges.lefts),
        rights=zeros_V.index_copy(0, merges.results, merges.rights),
        pairs=pairs,
        pair_ranks=ranks_Q[order],
        met=torch.zeros(0, dtype=torch.int64),
    )


def with_text(rules: MergeRules, keys: Tensor) -> MergeRules:
    """The same rules, which now also know pairs that stand in a text and are therefore allowed.

    Args:
        keys: the pairs as `pair_keys`, each once, ascending.
    """
    return replace(rules, met=keys[~stays_apart(rules, *pairs_of(keys))])


def may_follow(rules: MergeRules, previous_ids_X: Tensor, next_ids_X: Tensor) -> Tensor:
    """Whether the student ever reads the second id after the first, bool [X]."""
    keys, place_X = pair_keys(previous_ids_X, next_ids_X).unique(return_inverse=True)
    allowed = index_of(rules.met, keys) >= 0
    allowed[~allowed] = stays_apart(rules, *pairs_of(keys[~allowed]))
    if rules.trials is not None:
        denied = zip(*(ids.tolist() for ids in pairs_of(keys[~allowed])), strict=True)
        allowed[~allowed] = torch.tensor([rules.trials.ever_written(*pair) for pair in denied], dtype=torch.bool)
    return allowed[place_X]


def stays_apart(rules: MergeRules, previous_ids_X: Tensor, next_ids_X: Tensor) -> Tensor:
    """Whether the rules alone leave the border between two tokens standing, bool [X].

    Every two tokens that ever stand at the border are visited, the last ones first: of two, the one made later is
    taken apart.
    """
    apart_X = torch.ones_like(previous_ids_X, dtype=torch.bool)
    live, left, right = torch.arange(len(apart_X), device=apart_X.device), previous_ids_X, next_ids_X
    limit = torch.full_like(left, NEVER)  # rank of the merge that uses up one of the two
    while len(live):
        place = index_of(rules.pairs, pair_keys(left, right))
        due = rules.pair_ranks[place].masked_fill(place < 0, NEVER)
        falls = due < limit
        apart_X[live] = ~falls
        left_made, right_made = rules.ranks[left], rules.ranks[right]
        splits_left = left_made > right_made
        going_on = (~falls & (torch.maximum(left_made, right_made) >= 0)).nonzero().squeeze(1)
        next_left = torch.where(splits_left, rules.rights[left], left)
        next_right = torch.where(splits_left, right, rules.lefts[right])
        next_limit = torch.where(splits_left, left_made, right_made + 1)  # of equal ranks the leftmost merges first
        live, left, right, limit = (each[going_on] for each in (live, next_left, next_right, next_limit))
    return apart_X


def noncanonical(rules: MergeRules, entries: Entries, previous_ids_N: Tensor, next_ids_N: Tensor | None) -> Tensor:
    """Which entries cannot follow the student's last token, bool [Z].

    Args:
        entries: at T = 1.
        previous_ids_N: the student's last token, or NO_TOKEN.
        next_ids_N: the one that follows in the text, and so can; None: nothing is known of it.
    """
    asked_Z = (entries.logprobs > math.log(LEAST_PROB)) & (previous_ids_N != NO_TOKEN)[entries.rows]
    if next_ids_N is not None:
        asked_Z = asked_Z & (entries.ids != next_ids_N[entries.rows])
    gone_Z = torch.zeros_like(asked_Z)
    gone_Z[asked_Z] = ~may_follow(rules, previous_ids_N[entries.rows[asked_Z]], entries.ids[asked_Z])
    if next_ids_N is None:
        probs_Z, zeros_N = entries.logprobs.exp(), torch.zeros(len(previous_ids_N), device=asked_Z.device)
        lost_N, whole_N = (zeros_N.index_add(0, entries.rows, each) for each in (probs_Z * gone_Z, probs_Z))
        gone_Z = gone_Z & (lost_N <= MOST_GONE * whole_N)[entries.rows]
    return gone_Z
