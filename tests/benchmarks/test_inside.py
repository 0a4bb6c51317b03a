"""Targets that do not know where teacher tokens end, against the teacher's own distribution handed out the slow way."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from exact_targets import window_of
from inside import LEAST, Inside, InsideTargets, from_cache, from_teacher, with_aligned

from moe_distill.alignment.encode import make_encoder
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from moe_distill.targets.canonical import may_follow
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.sparse_target import SparseTarget
from tests.chain import Chain

OF_TWO = Inside(
    torch.tensor([True, False]),
    torch.tensor([0.2, 0.0]),
    torch.tensor([1.0, 0.75]),
    torch.tensor([0, 0, 1]),
    torch.tensor([1, 3, 1]),
    torch.tensor([0.5, 0.3, 0.25]),
)
OF_ONE = Inside(
    torch.tensor([True]),
    torch.tensor([0.0]),
    torch.tensor([1.0]),
    torch.tensor([0]),
    torch.tensor([2]),
    torch.tensor([1.0]),
)
ALIGNED = SparseTarget(
    temperature=1.0,
    has_target_N=torch.tensor([False, True, False]),
    has_bucket_N=torch.tensor([False, False, False]),
    residual_N=torch.tensor([0.0, 0.4, 0.0]),
    listed_mass_N=torch.tensor([0.0, 0.9, 0.0]),
    entry_positions_Z=torch.tensor([1]),
    entry_ids_Z=torch.tensor([2]),
    entry_probs_Z=torch.tensor([0.6]),
    sample_positions_Y=torch.tensor([1]),
    sample_ids_Y=torch.tensor([0]),
    sample_probs_Y=torch.tensor([0.3]),
)


def test_what_begins_alike_is_handed_out_by_the_teachers_probabilities(chain: Chain) -> None:
    models = chain.folder / "models"
    student, other = (make_encoder(load_tokenizer(models / name), 0, name) for name in ("student_init", "teacher"))
    teacher = load_causal_lm(models / "teacher", torch.float32, torch.device("cpu"))
    windows = WindowStore(chain.windows / "train", STUDENT_WINDOWS)
    around = WindowStore(chain.folder / "data/windows/teacher/train", TEACHER_WINDOWS)
    merges = load_vocabulary_map(chain.windows / "vocabulary_map", windows).merges
    assert merges is not None
    probs_of = from_teacher(teacher, around.prefix_id)
    found = InsideTargets((windows, around), (student, other), probs_of, merges).of(0)

    table, by_bytes = other.token_bytes.table, student.token_bytes.by_bytes()
    teacher_ids = around.tokens("token_ids", 0).long()
    with torch.no_grad():
        context = torch.cat([torch.tensor([around.prefix_id]), teacher_ids])
        probs_LR = teacher(input_ids=context[None]).logits[0].double().softmax(-1)
    ends = [len(other.token_bytes.join(teacher_ids[: n + 1].numpy())) for n in range(len(teacher_ids))]
    ids, at = windows.tokens("token_ids", 0).tolist(), 0
    buckets: list[float] = []
    goes_on: list[float] = []
    for position, next_id in enumerate(ids):
        row = next(n for n, end in enumerate(ends) if end >= at)  # of the token that ends here, or goes on
        token = table[int(teacher_ids[row])] or b""
        written, is_inside = token[: at - (ends[row] - len(token))], ends[row] > at
        at += len(student.token_bytes.table[next_id] or b"")
        assert bool(found.covered_N[position]) == (is_inside and bool(written))
        if not written:
            continue
        alike = [n for n, each in enumerate(table) if each and each.startswith(written)]
        expected, ended, unlisted = defaultdict[int, float](float), 0.0, 0.0
        for number in alike:
            share = float(probs_LR[row, number] / probs_LR[row, alike].sum())
            rest = (table[number] or b"")[len(written) :]
            if not rest:
                ended += share
            elif number == teacher_ids[row]:
                expected[next_id] += share
            elif share < LEAST:
                unlisted += share
            elif rest.isascii():
                expected[student.tokenizer.encode(rest.decode(), add_special_tokens=False).ids[0]] += share
            else:
                expected[next(by_bytes[rest[:n]] for n in range(len(rest), 0, -1) if rest[:n] in by_bytes)] += share
        for student_id in list(expected):
            pair = torch.tensor([ids[position - 1]]), torch.tensor([student_id])
            if not may_follow(merges, *pair) and not (is_inside and student_id == next_id):
                del expected[student_id]
        bucket = ended + unlisted if is_inside else 0.0
        left = (bucket if is_inside else ended) + sum(expected.values())
        of_position = found.positions_Z == position
        got = dict(zip(found.ids_Z[of_position].tolist(), found.probs_Z[of_position].tolist(), strict=True))
        assert got == pytest.approx({student_id: share / left for student_id, share in expected.items()}, abs=1e-5)
        assert float(found.residual_N[position]) == pytest.approx(bucket / left, abs=1e-5)
        assert float(found.ended_N[position]) == pytest.approx(1.0 if is_inside else ended / left, abs=1e-5)
        (buckets if is_inside else goes_on).append(bucket if is_inside else 1.0 - ended / left)
    assert len(buckets) > 10
    assert max(buckets) > 0.01
    assert len(goes_on) > 10
    assert max(goes_on) > 0.01


def test_the_cache_says_what_the_teacher_does_of_what_it_has(chain: Chain) -> None:
    models = chain.folder / "models"
    student, other = (make_encoder(load_tokenizer(models / name), 0, name) for name in ("student_init", "teacher"))
    around = WindowStore(chain.folder / "data/windows/teacher/train", TEACHER_WINDOWS)
    window = window_of((WindowStore(chain.windows / "train", STUDENT_WINDOWS), around), (student, other), 0)
    teacher = load_causal_lm(models / "teacher", torch.float32, torch.device("cpu"))
    shards = open_targets(chain.targets / "train")
    expected_LR, found_LR = from_teacher(teacher, around.prefix_id)(window), from_cache(shards, around)(window)
    span = around.span(window.around)
    kept_LK = shards.slice("topk_ids", span.start, span.stop).long()
    torch.testing.assert_close(found_LR.gather(1, kept_LK), expected_LR.gather(1, kept_LK), rtol=5e-3, atol=1e-5)
    text_L1 = torch.tensor(window.teacher_ids)[:, None]
    torch.testing.assert_close(found_LR.gather(1, text_L1), expected_LR.gather(1, text_L1), rtol=5e-3, atol=1e-5)
    assert float(found_LR.sum(-1).mean()) == pytest.approx(1.0, abs=0.02)


def test_the_loss_is_least_where_the_student_says_the_same() -> None:
    same = torch.tensor([[0.1, 0.5, 0.1, 0.3], [0.25, 0.25, 0.25, 0.25], [1e-6, 1e-6, 1.0, 1e-6]]).log()
    no_target = replace(ALIGNED, has_target_N=torch.zeros(3, dtype=torch.bool), entry_probs_Z=torch.zeros(1))
    no_target = replace(no_target, sample_probs_Y=torch.zeros(1))
    covered_N, least = with_aligned([OF_TWO, OF_ONE], no_target, same)
    assert covered_N.tolist() == [1.0, 0.0, 1.0]
    of_longer = -0.25 * torch.tensor(0.25).log()  # of the position at a common boundary
    torch.testing.assert_close(least - of_longer, -sum(prob * torch.tensor(prob).log() for prob in (0.2, 0.5, 0.3)))
    for place in [(0, 1), (0, 3), (2, 2)]:
        other = same.exp()
        other[place] -= 0.05
        assert with_aligned([OF_TWO, OF_ONE], no_target, other.log())[1] > least


def test_aligned_positions_keep_their_own_targets_as_far_as_the_token_has_ended() -> None:
    """Entries and samples."""
    logprobs_NV = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    covered_N, loss = with_aligned([OF_TWO, OF_ONE], ALIGNED, logprobs_NV)
    assert covered_N.tolist() == [1.0, 1.0, 1.0]
    no_target = replace(ALIGNED, entry_probs_Z=torch.zeros(1), sample_probs_Y=torch.zeros(1))
    others = with_aligned([OF_TWO, OF_ONE], no_target, logprobs_NV)[1]
    torch.testing.assert_close(loss, others - 0.75 * (0.6 * logprobs_NV[1, 2] + 0.3 * logprobs_NV[1, 0]))
