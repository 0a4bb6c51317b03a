"""How close is the gradient of the cached objective to that of full-vocabulary KD?

For each temperature and number of tail samples: the angle between the two gradients of all student parameters, in
degrees, and the ratio of their norms, over as many windows as a step of training has. The full objective hands out the
teacher's whole distribution in float32, by the same shares and the same next tokens. Neither asks what the student's
tokenizer would have joined (targets/canonical).
After `dvc repro` (profile tiny):

    python benchmarks/gradient_fidelity.py models/student_init models/student_kd models/student
"""

import math
from dataclasses import replace
from pathlib import Path

import torch
import typer
from torch import Tensor

from moe_distill.batches.loader import BatchReader, BatchRequest
from moe_distill.batches.split import Split
from moe_distill.config.params import KdOrder
from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import Text, text_loss
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.sparse_target import NextTokens, sparse_target
from moe_distill.targets.stretches import stretches
from moe_distill.targets.teacher_rows import TeacherRows, teacher_rows
from moe_distill.targets.token_shares import VocabularyMap
from moe_distill.teacher.sparsify import sparsify

CPU = torch.device("cpu")


def main(
    students: list[Path],
    windows: int = 16,
    k: int = 32,
    samples: str = "0,16,64,256",
    order: KdOrder = "map_then_temper",
) -> None:
    split = Split(WindowStore(Path("data/windows/student/train"), STUDENT_WINDOWS), None)
    batch = BatchReader(split, None, with_states=False, chunk_tokens=2048).read(BatchRequest(tuple(range(windows))))
    rows, next_ids = (
        torch.cat([split.windows.tokens(name, number) for number in range(windows)])
        for name in ("teacher_rows", "next_teacher_ids")
    )
    aligned = rows >= 0
    logits_AV = teacher_logits(rows[aligned])
    vocabulary_map = replace(
        load_vocabulary_map(Path("data/windows/student/vocabulary_map"), split.windows), merges=None
    )
    text = NextTokens(next_ids[aligned].long(), batch.text.labels_N[aligned])
    records = {m: recorded(logits_AV, text.teacher_ids, k, m) for m in map(int, samples.split(","))}
    print("student temperature samples degrees norm_ratio")
    for folder in students:
        model = load_causal_lm(folder, torch.float32, CPU)
        hidden = model.get_decoder()(input_ids=batch.input_ids_BL, use_cache=False).last_hidden_state
        hidden_AD, weight_VD = hidden.flatten(0, 1)[batch.places_N][aligned], model.get_output_embeddings().weight
        student_AV = hidden_AD @ weight_VD.T
        for temperature in (1.0, 2.0, 3.0, 4.0):
            full = gradient(model, full_kl(student_AV, logits_AV, vocabulary_map, text, temperature, order))
            for m, cached in records.items():
                everywhere = torch.ones(len(logits_AV), dtype=torch.bool)
                target = sparse_target(cached, everywhere, vocabulary_map, temperature, order, "sampled", text)
                asked = Text(text.student_ids, target, stretches(len(target), 2048, target))
                found = text_loss(hidden_AD, OutputHead(weight_VD), asked, kd_weight=1.0, dtype=torch.float32)
                sparse = gradient(model, found.loss / temperature**2)
                cosine = float(torch.cosine_similarity(full, sparse, dim=0).clamp(-1, 1))
                degrees, ratio = math.degrees(math.acos(cosine)), float(sparse.norm() / full.norm())
                print(folder.name, temperature, m, f"{degrees:.1f} {ratio:.3f}", flush=True)


def recorded(logits_AV: Tensor, next_ids_A: Tensor, k: int, m: int) -> TeacherRows:
    """What the shards would hold of these positions."""
    torch.manual_seed(0)
    records = sparsify(logits_AV, next_ids_A, k, m, torch.rand(len(logits_AV)))
    return teacher_rows(vars(records), logits_AV.shape[1] - k)


def teacher_logits(rows: Tensor) -> Tensor:
    """Full fp32 logits of the teacher at position rows of the training split, [rows, V]."""
    store = WindowStore(Path("data/windows/teacher/train"), TEACHER_WINDOWS)
    teacher = load_causal_lm(Path("models/teacher"), torch.float32, CPU)
    prefix = torch.tensor([store.prefix_id])
    logits: list[Tensor] = []
    window = 0
    while sum(len(each) for each in logits) <= int(rows.max()):
        ids = store.tokens("token_ids", window).long()
        with torch.inference_mode():
            logits.append(teacher(torch.cat([prefix, ids[:-1]])[None], use_cache=False).logits[0])
        window += 1
    return torch.cat(logits)[rows].clone()


def full_kl(
    student_AV: Tensor,
    logits_AV: Tensor,
    vocabulary_map: VocabularyMap,
    text: NextTokens,
    temperature: float,
    order: KdOrder,
) -> Tensor:
    """Cross-entropy against the whole distribution, summed over positions; mass without a place exerts no force."""
    tempers_first = order == "temper_then_map"
    probs_AV = (logits_AV / temperature if tempers_first else logits_AV).softmax(-1)
    next_A1 = probs_AV.gather(-1, text.teacher_ids[:, None])
    probs_AV = probs_AV.scatter(-1, text.teacher_ids[:, None], 0.0)
    target = torch.zeros_like(student_AV.detach()).scatter_add(-1, text.student_ids[:, None], next_A1)
    for student_ids, log_shares in zip(vocabulary_map.student_ids.T, vocabulary_map.log_shares.T, strict=True):
        target.index_add_(1, student_ids, probs_AV * log_shares.exp())
    if not tempers_first:
        unmapped_AR = probs_AV * (vocabulary_map.likeliest < 0)
        target = target ** (1 / temperature)
        target /= target.sum(-1, keepdim=True) + (unmapped_AR ** (1 / temperature)).sum(-1, keepdim=True)
    return -(target * (student_AV / temperature).log_softmax(-1)).sum()


def gradient(model: torch.nn.Module, loss: Tensor) -> Tensor:
    parameters = list(model.parameters())
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)])


if __name__ == "__main__":
    typer.run(main)
