"""Targets inside teacher tokens, against the teacher's own distribution, handed out the slow way."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from inside import LEAST, Inside, InsideTargets, bucketed, with_aligned

from moe_distill.alignment.encode import make_encoder
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from moe_distill.targets.canonical import may_follow
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.sparse_target import SparseTarget
from tests.chain import Chain

OF_TWO = Inside(
    torch.tensor([True, False]),
    torch.tensor([0.2, 0.0]),
    torch.tensor([0, 0]),
    torch.tensor([1, 3]),
    torch.tensor([0.5, 0.3]),
)
OF_ONE = Inside(torch.tensor([True]), torch.tensor([0.0]), torch.tensor([0]), torch.tensor([2]), torch.tensor([1.0]))


def test_what_begins_alike_is_handed_out_by_the_teachers_probabilities(chain: Chain) -> None:
    models = chain.folder / "models"
    student, other = (make_encoder(load_tokenizer(models / name), 0, name) for name in ("student_init", "teacher"))
    teacher = load_causal_lm(models / "teacher", torch.float32, torch.device("cpu"))
    windows = WindowStore(chain.windows / "train", STUDENT_WINDOWS)
    around = chain.folder / "data/windows/teacher/train"
    merges = load_vocabulary_map(chain.windows / "vocabulary_map", windows).merges
    assert merges is not None
    found = InsideTargets(windows, around, (student, other), teacher, merges).of(0)

    table, by_bytes = other.token_bytes.table, student.token_bytes.by_bytes()
    teacher_windows = WindowStore(around, TEACHER_WINDOWS)
    teacher_ids = teacher_windows.tokens("token_ids", 0).long()
    with torch.no_grad():
        context = torch.cat([torch.tensor([teacher_windows.prefix_id]), teacher_ids])
        probs_LR = teacher(input_ids=context[None]).logits[0].double().softmax(-1)
    ends = [len(other.token_bytes.join(teacher_ids[: n + 1].numpy())) for n in range(len(teacher_ids))]
    ids, at, buckets = windows.tokens("token_ids", 0).tolist(), 0, []
    for position, next_id in enumerate(ids):
        row = next(n for n, end in enumerate(ends) if end > at)
        token = table[int(teacher_ids[row])] or b""
        written = token[: at - (ends[row] - len(token))]
        at += len(student.token_bytes.table[next_id] or b"")
        assert bool(found.covered_N[position]) == bool(written)
        if not written:
            continue
        alike = [n for n, each in enumerate(table) if each and each.startswith(written)]
        expected, bucket = defaultdict[int, float](float), 0.0
        for number in alike:
            share = float(probs_LR[row, number] / probs_LR[row, alike].sum())
            rest = (table[number] or b"")[len(written) :]
            if number == teacher_ids[row]:
                expected[next_id] += share
            elif not rest or share < LEAST:
                bucket += share
            elif rest.isascii():
                expected[student.tokenizer.encode(rest.decode(), add_special_tokens=False).ids[0]] += share
            else:
                expected[next(by_bytes[rest[:n]] for n in range(len(rest), 0, -1) if rest[:n] in by_bytes)] += share
        for student_id in list(expected):
            pair = torch.tensor([ids[position - 1]]), torch.tensor([student_id])
            if student_id != next_id and not may_follow(merges, *pair):
                del expected[student_id]
        left = bucket + sum(expected.values())
        of_position = found.positions_Z == position
        got = dict(zip(found.ids_Z[of_position].tolist(), found.probs_Z[of_position].tolist(), strict=True))
        assert got == pytest.approx({student_id: share / left for student_id, share in expected.items()}, abs=1e-5)
        assert float(found.residual_N[position]) == pytest.approx(bucket / left, abs=1e-5)
        buckets.append(bucket)
    assert len(buckets) > 10
    assert max(buckets) > 0.01


def test_the_loss_is_least_where_the_student_says_the_same() -> None:
    same = torch.tensor([[0.1, 0.5, 0.1, 0.3], [0.25] * 4, [1e-6, 1e-6, 1.0, 1e-6]]).log()
    covered_N, least = bucketed([OF_TWO, OF_ONE], same)
    assert covered_N.tolist() == [True, False, True]
    torch.testing.assert_close(least, -sum(prob * torch.tensor(prob).log() for prob in (0.2, 0.5, 0.3)))
    for place in [(0, 1), (0, 3), (2, 2)]:
        other = same.exp()
        other[place] -= 0.05
        assert bucketed([OF_TWO, OF_ONE], other.log())[1] > least


def test_aligned_positions_keep_their_own_targets() -> None:
    """Entries and samples, of a position that the other targets leave out."""
    logprobs_NV = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    aligned = SparseTarget(
        temperature=1.0,
        is_sampled=True,
        has_target_N=torch.tensor([False, True, False]),
        residual_N=torch.tensor([0.0, 0.4, 0.0]),
        listed_mass_N=torch.tensor([0.0, 0.9, 0.0]),
        entry_positions_Z=torch.tensor([1]),
        entry_ids_Z=torch.tensor([2]),
        entry_probs_Z=torch.tensor([0.6]),
        sample_positions_Y=torch.tensor([1]),
        sample_ids_Y=torch.tensor([0]),
        sample_probs_Y=torch.tensor([0.3]),
    )
    covered_N, loss = with_aligned([OF_TWO, OF_ONE], aligned, logprobs_NV)
    assert covered_N.tolist() == [1.0, 1.0, 1.0]
    inside = bucketed([OF_TWO, OF_ONE], logprobs_NV)[1]
    torch.testing.assert_close(loss, inside - 0.6 * logprobs_NV[1, 2] - 0.3 * logprobs_NV[1, 0])
    without = replace(aligned, has_target_N=torch.zeros(3, dtype=torch.bool))
    assert with_aligned([OF_TWO, OF_ONE], without, logprobs_NV)[0].tolist() == [1.0, 0.0, 1.0]
