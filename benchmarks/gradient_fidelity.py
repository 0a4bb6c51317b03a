"""How close is the gradient of the cached objective to that of full-vocabulary KD?

For each temperature and number of tail samples: the angle between the two gradients of all student parameters, in
degrees, and the ratio of their norms. The full objective maps the teacher's whole distribution in float32.
After `dvc repro` (profile tiny):

    python benchmarks/gradient_fidelity.py models/student_init models/student_kd models/student
"""

import math
from pathlib import Path

import torch
import typer
from torch import Tensor

from moe_distill.losses.kd import forward_kl
from moe_distill.losses.target import sparse_target
from moe_distill.losses.vocabulary import VocabularyMap, rule_map
from moe_distill.pretrained import load_causal_lm
from moe_distill.shards.targets import teacher_rows
from moe_distill.shards.windows import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore, read_vocabulary_map
from moe_distill.teacher.sparsify import sparsify
from moe_distill.training.data import TEXT_ALONE, Split, read_batch

CPU = torch.device("cpu")


def main(students: list[Path], windows: int = 16, k: int = 32, samples: str = "0,16,64,256") -> None:
    split = Split(WindowStore(Path("data/windows/student/train"), STUDENT_WINDOWS), None)
    batch = read_batch(split, list(range(windows)), TEXT_ALONE)
    rows = torch.cat([split.windows.tokens("teacher_rows", number) for number in range(windows)])
    logits_AV = teacher_logits(rows[rows >= 0])
    student_ids = read_vocabulary_map(Path("data/windows/student/vocabulary_map"))
    print("student temperature samples degrees norm_ratio")
    for folder in students:
        model = load_causal_lm(folder, torch.float32, CPU)
        vocabulary_map = rule_map(student_ids)
        for temperature in (1.0, 2.0, 3.0, 4.0):
            hidden = model.get_decoder()(input_ids=batch.input_ids_BL, use_cache=False).last_hidden_state
            student_AV = hidden.flatten(0, 1)[batch.places_N][batch.aligned_A] @ model.get_output_embeddings().weight.T
            full = gradient(model, full_kl(student_AV, logits_AV, vocabulary_map, temperature))
            for m in map(int, samples.split(",")):
                records = sparsify(logits_AV, torch.zeros(len(logits_AV)).long(), k, m, torch.rand(len(logits_AV)))
                cached = teacher_rows(vars(records), logits_AV.shape[1] - k)
                target = sparse_target(cached, vocabulary_map, temperature, "temper_then_map", "sampled")
                loss = forward_kl(student_AV, target, temperature).sum()
                sparse = gradient(model, loss)
                cosine = float(torch.cosine_similarity(full, sparse, dim=0).clamp(-1, 1))
                degrees, ratio = math.degrees(math.acos(cosine)), float(sparse.norm() / full.norm())
                print(folder.name, temperature, m, f"{degrees:.1f} {ratio:.3f}", flush=True)


def teacher_logits(rows: Tensor) -> Tensor:
    """Full fp32 logits of the teacher at position rows of the training split, [rows, V]."""
    store = WindowStore(Path("data/windows/teacher/train"), TEACHER_WINDOWS)
    teacher = load_causal_lm(Path("models/teacher"), torch.float32, CPU)
    prefix = torch.tensor([store.reader.index.metadata["prefix_id"]])
    logits, window = [], 0
    while sum(map(len, logits)) <= int(rows.max()):
        ids = store.tokens("token_ids", window).long()
        with torch.inference_mode():
            logits.append(teacher(torch.cat([prefix, ids[:-1]])[None], use_cache=False).logits[0])
        window += 1
    return torch.cat(logits)[rows].clone()


def full_kl(student_AV: Tensor, logits_AV: Tensor, vocabulary_map: VocabularyMap, temperature: float) -> Tensor:
    """KL of the whole mapped distribution, summed over positions; unmapped mass exerts no force."""
    probs_AV = (logits_AV / temperature).softmax(-1)
    mapped, student_ids = vocabulary_map.log_shares[:, 0] == 0.0, vocabulary_map.student_ids[:, 0]
    target = torch.zeros_like(student_AV.detach())
    target.index_add_(1, student_ids[mapped], probs_AV[:, mapped])
    return -(target * (student_AV / temperature).log_softmax(-1)).sum()


def gradient(model: torch.nn.Module, loss: Tensor) -> Tensor:
    parameters = list(model.parameters())
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)])


if __name__ == "__main__":
    typer.run(main)
