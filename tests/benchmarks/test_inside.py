"""Targets inside teacher tokens, against the teacher's own distribution."""

import pytest
import torch
from inside import Inside, InsideTargets, bucketed

from moe_distill.alignment.encode import make_encoder
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from moe_distill.targets.next_token_counts import load_vocabulary_map
from tests.chain import Chain


def test_the_text_has_the_probability_that_the_teacher_gives_it_among_all_that_begin_alike(chain: Chain) -> None:
    models = chain.folder / "models"
    student, other = (make_encoder(load_tokenizer(models / name), 0, name) for name in ("student_init", "teacher"))
    teacher = load_causal_lm(models / "teacher", torch.float32, torch.device("cpu"))
    windows = WindowStore(chain.windows / "train", STUDENT_WINDOWS)
    around = chain.folder / "data/windows/teacher/train"
    merges = load_vocabulary_map(chain.windows / "vocabulary_map", windows).merges
    assert merges is not None
    targets = InsideTargets(windows, around, (student, other), teacher, merges)
    found, table = targets.of(0), other.token_bytes.table

    teacher_windows = WindowStore(around, TEACHER_WINDOWS)
    teacher_ids = teacher_windows.tokens("token_ids", 0).long()
    with torch.no_grad():
        context = torch.cat([torch.tensor([teacher_windows.prefix_id]), teacher_ids])
        probs_LR = teacher(input_ids=context[None]).logits[0].softmax(-1)
    ends = [len(other.token_bytes.join(teacher_ids[: n + 1].numpy())) for n in range(len(teacher_ids))]
    ids, n_seen, at = windows.tokens("token_ids", 0).tolist(), 0, 0
    for position, student_id in enumerate(ids):
        row = next(n for n, end in enumerate(ends) if end > at)
        token = table[int(teacher_ids[row])] or b""
        written = token[: at - (ends[row] - len(token))]
        assert bool(found.covered_N[position]) == bool(written)
        if written:
            alike = [n for n, each in enumerate(table) if each and each.startswith(written)]
            least = float(probs_LR[row, teacher_ids[row]] / probs_LR[row, alike].sum())
            of_position = found.positions_Z == position
            probs = dict(zip(found.ids_Z[of_position].tolist(), found.probs_Z[of_position].tolist(), strict=True))
            assert probs[student_id] > least - 1e-6
            assert sum(probs.values()) + float(found.residual_N[position]) == pytest.approx(1.0, abs=1e-5)
            n_seen += 1
        at += len(student.token_bytes.table[student_id] or b"")
    assert n_seen > 10


def test_the_loss_is_least_where_the_student_says_the_same() -> None:
    target = Inside(
        torch.tensor([True, False]),
        torch.tensor([0.2, 0.0]),
        torch.tensor([0, 0]),
        torch.tensor([1, 3]),
        torch.tensor([0.5, 0.3]),
    )
    same = torch.tensor([[0.1, 0.5, 0.1, 0.3], [0.25] * 4]).log()
    other = torch.tensor([[0.15, 0.45, 0.1, 0.3], [0.25] * 4]).log()
    covered_N, least = bucketed([target], same)
    entropy = -sum(prob * torch.tensor(prob).log() for prob in (0.2, 0.5, 0.3))
    assert covered_N.tolist() == [True, False]
    torch.testing.assert_close(least, entropy)
    assert bucketed([target], other)[1] > least
