"""The ceilings of `comparison_run`: a teacher that has the student's tokenizer, with its privileges taken away.

* `native_full`: its whole distribution, everywhere; `same_full`: the same for one tokenizer of both profiles' models;
* `native_cached`: the top-k, the tail and its samples, as the shards keep them (but for fp16);
* `native_masked`: as many positions of each window as are aligned, drawn at random, the same in every epoch;
* `native_dropped`: the same, and LM has no more of the others than of these;
* `native_aligned`: the aligned positions themselves: none inside a token of the other tokenizer;
* `native_mapped`: there, and through the vocabulary map there and back: each token's probability goes to the first
  token that the other tokenizer makes of its bytes, and from there to the student by the shares that our targets are
  made with; what follows in the text is known both ways, as it is to our targets.

Shapes: N positions, A of them aligned, V student vocabulary, R rows of the teacher's output matrix.
"""

from dataclasses import dataclass

import torch
from rivals import full_vocabulary_kl
from torch import Tensor

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.vocabulary_map import vocabulary_map
from moe_distill.batches.batch import Batch
from moe_distill.config.params import load_params
from moe_distill.targets.sparse_target import NextTokens, SparseTarget, sparse_target
from moe_distill.targets.teacher_rows import teacher_rows
from moe_distill.targets.token_shares import VocabularyMap, rule_map
from moe_distill.teacher.sparsify import sparsify

NATIVE = ("native_full", "native_cached", "native_masked", "native_dropped", "native_aligned", "native_mapped")


@dataclass(frozen=True)
class RoundTrip:
    """From the student's vocabulary to the teacher's and back."""

    there_V: Tensor  # int64: teacher id of each student id; -1: none
    back_VR: Tensor  # sparse: share of each teacher id's probability that a student id gets


def round_trip(student: Encoder, teacher: Encoder, back: VocabularyMap) -> RoundTrip:
    n_student_ids, n_teacher_ids = len(student.token_bytes.table), len(back.student_ids)
    teacher_ids, ranks = (back.log_shares > float("-inf")).nonzero(as_tuple=True)
    places = torch.stack([back.student_ids[teacher_ids, ranks], teacher_ids])
    shares = back.log_shares[teacher_ids, ranks].exp()
    return RoundTrip(
        torch.from_numpy(vocabulary_map(student, teacher, n_student_ids)).long(),
        torch.sparse_coo_tensor(places, shares, (n_student_ids, n_teacher_ids), check_invariants=False).coalesce(),
    )


def there_and_back(trip: RoundTrip, probs_AV: Tensor, text: NextTokens) -> Tensor:
    """The distribution after the round trip, [A, V]; what has no token of the other side is lost."""
    labels_A1, next_A1 = text.student_ids[:, None], text.teacher_ids[:, None]
    of_text_A1, others_AV = probs_AV.gather(1, labels_A1), probs_AV.scatter(1, labels_A1, 0.0)
    has_place_V = trip.there_V >= 0
    there_AR = probs_AV.new_zeros(len(probs_AV), trip.back_VR.shape[1])
    there_AR.index_add_(1, trip.there_V[has_place_V], others_AV[:, has_place_V])
    of_text_A1 = of_text_A1 + there_AR.gather(1, next_A1)
    back_AV = torch.sparse.mm(trip.back_VR, there_AR.scatter(1, next_A1, 0.0).T).T
    found: Tensor = back_AV.scatter_add(1, labels_A1, of_text_A1)
    return found


def native_loss(
    objective: str, batch: Batch, logits_NV: Tensor, teacher_NV: Tensor, text_N: NextTokens, trip: RoundTrip | None
) -> tuple[Tensor, Tensor]:
    """Where an objective has its weight, LM the rest (0 or 1, [N]), and its loss, summed.

    Args:
        text_N: the next tokens of both; -1 where the teacher has none that begins there.
    """
    aligned_N = text_N.teacher_ids >= 0
    if objective == "native_cached":
        return torch.ones(len(logits_NV)), cached_cross_entropy(batch, logits_NV, teacher_NV, text_N.student_ids)
    if objective == "native_mapped":
        assert trip is not None
        text = NextTokens(text_N.teacher_ids[aligned_N], text_N.student_ids[aligned_N])
        target_AV = there_and_back(trip, teacher_NV[aligned_N].softmax(-1), text)
        return aligned_N.float(), -(target_AV * logits_NV[aligned_N].log_softmax(-1)).sum()
    covered_N = torch.ones(len(logits_NV))
    if objective == "native_aligned":
        covered_N = aligned_N.float()
    if objective in ("native_masked", "native_dropped"):
        covered_N = torch.cat([shuffled(*pair) for pair in of_windows(batch, aligned_N.float())])
    loss = (covered_N * full_vocabulary_kl(logits_NV, teacher_NV)).sum()
    return torch.ones_like(covered_N) if objective == "native_dropped" else covered_N, loss


def cached_cross_entropy(batch: Batch, logits_NV: Tensor, teacher_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Against what the shards would hold of the teacher; a window's samples are the same in every epoch."""
    capture, n_ids = load_params().profile.teacher, teacher_NV.shape[1]
    uniforms_N = torch.cat([torch.rand(len(part), generator=g) for part, g in of_windows(batch, labels_N)])
    records = sparsify(teacher_NV, labels_N, capture.k, capture.tail_samples, uniforms_N)
    target = sparse_target(
        teacher_rows(vars(records), n_ids - capture.k),
        torch.ones(len(labels_N), dtype=torch.bool),
        rule_map(torch.arange(n_ids)),
        1.0,
        "map_then_temper",
        "sampled",
        NextTokens(labels_N, labels_N),
    )
    return cross_entropy(target, logits_NV.log_softmax(-1))


def cross_entropy(target: SparseTarget, logprobs_NV: Tensor) -> Tensor:
    """Against entries and samples, summed."""
    of_entries = target.entry_probs_Z @ logprobs_NV[target.entry_positions_Z, target.entry_ids_Z]
    return -of_entries - target.sample_probs_Y @ logprobs_NV[target.sample_positions_Y, target.sample_ids_Y]


def of_windows(batch: Batch, values_N: Tensor) -> list[tuple[Tensor, torch.Generator]]:
    """The values of each window of a batch, and a generator of its own."""
    counts = torch.bincount(batch.places_N // batch.input_ids_BL.shape[1]).tolist()
    generators = [torch.Generator().manual_seed(number) for number in batch.windows]
    return list(zip(values_N.split(counts), generators, strict=True))


def shuffled(values_n: Tensor, generator: torch.Generator) -> Tensor:
    return values_n[torch.randperm(len(values_n), generator=generator)]
