"""Bytes of a position's logits on disk, and how far what is read is from what the teacher said.

The divergence is KL(true || restored) over the outcomes that a position's record tells apart: each of the k kept ids,
and all others together. The true one is the softmax of the logits in float64; the restored one, what the store's dtypes
have kept, is normalised, so what rounding adds to its sum is not in the divergence. Logits are of a real model over a
real text where `MOE_DISTILL_BENCH_MODEL` names its folder and the assets have WikiText-2; else they are drawn, over
151,936 ids with a heavy tail. Figures of others are quoted; nothing says that their divergence is over the same
outcomes.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
from bench_row import Row, Size, at_most, missing
from bench_texts import find_asset
from interleaved import CPU
from random_pair import REAL, drawn_logits, params_of
from torch import Tensor

from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.shards.format import DTYPES, FieldSpec
from moe_distill.shards.teacher_store import target_fields
from moe_distill.targets.teacher_rows import teacher_rows
from moe_distill.teacher.columns import fitted
from moe_distill.teacher.sparsify import Records, sparsify

MODEL = "MOE_DISTILL_BENCH_MODEL"
DISTILLKIT, MEGATRON = "DistillKit's recommended compressor", "Megatron-LM's offline logit cache"
QUOTED = f"{DISTILLKIT}; as quoted by the project's maintainers, not measured here"
PUBLISHED = f"{MEGATRON}, published; not measured here"
PART = 64  # positions whose whole distributions are held in float64 at once
DIVERGENCE = 1e-4  # nats


def rows(size: Size) -> Iterator[Row]:
    """Bytes at the real pair's settings, and the divergence."""
    capture = params_of(REAL).profile.teacher
    specs = target_fields(capture.k, capture.tail_samples, 0, 0, 0, 0)
    kept = sum(row_bytes(specs[name]) for name in ("topk_ids", "topk_logprobs"))
    whole = sum(row_bytes(spec) for spec in specs.values() if spec.table == "positions")
    yield Row(
        f"bytes of a position: ids and values, k = {capture.k}", f"{kept} B", f"344 B ({DISTILLKIT})", note=QUOTED
    )
    yield Row(
        f"with log-sums and {capture.tail_samples} samples of the tail",
        f"{whole} B",
        f"528 B ({MEGATRON})",
        note=PUBLISHED,
    )
    why = "not built, see docs/decisions.md"
    yield missing("packed, ids of 18 bits and values of 8", why, at_most(212, "B"))
    source, logits_NR = some_logits(size)
    divergences_N = torch.cat(
        [restored_divergence(part, capture.k, capture.tail_samples, specs) for part in logits_NR.split(PART)]
    )
    mean = float(divergences_N.mean())
    yield Row(
        f"KL of the true distribution from the restored one, normalised, nats, k = {capture.k} ({source})",
        ours=f"{mean:.1e} (largest {float(divergences_N.max()):.1e})",
        reference=f"6e-2 ({DISTILLKIT})",
        target=at_most(DIVERGENCE, "nats"),
        value=mean,
        note=QUOTED,
    )


def row_bytes(spec: FieldSpec) -> int:
    return math.prod(spec.shape) * DTYPES[spec.dtype].itemsize


def restored_divergence(logits_NR: Tensor, k: int, tail_samples: int, specs: dict[str, FieldSpec]) -> Tensor:
    """KL(true || restored) of each position, nats, float64 [N], after a way through the dtypes of the store."""
    n, n_ids = logits_NR.shape
    records = sparsify(logits_NR, torch.zeros(n, dtype=torch.int64), k, tail_samples, torch.full((n,), 0.5))
    columns = {
        each.name: fitted(getattr(records, each.name), DTYPES[specs[each.name].dtype]) for each in fields(Records)
    }
    restored = teacher_rows(columns, n_ids - k)
    true_NR = logits_NR.double().log_softmax(-1)
    true_NK = true_NR.gather(1, restored.topk_ids)
    others_N1 = true_NR.scatter(1, restored.topk_ids, -math.inf).logsumexp(-1, keepdim=True)
    true_NO = torch.cat([true_NK, others_N1], 1)
    restored_NO = torch.cat([restored.topk_logprobs, restored.tail_logsumexp[:, :1]], 1).double().log_softmax(-1)
    return (true_NO.exp() * (true_NO - restored_NO)).sum(-1)


def some_logits(size: Size) -> tuple[str, Tensor]:
    """What they are of, and logits [positions, ids of the teacher]."""
    n = size.pick(4, 128, 512)
    text, folder = find_asset("corpora/wikitext2_test_raw.txt"), os.environ.get(MODEL)
    if text is None or not folder or size is Size.SMALLEST:
        return f"drawn, {n} positions", drawn_logits(n, REAL.teacher.vocabulary)
    ids = load_tokenizer(Path(folder)).encode(text.read_text(encoding="utf-8")[: 10 * n]).ids[:n]
    with torch.inference_mode():
        model = load_causal_lm(Path(folder), torch.float32, CPU)
        logits_NR = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return f"{model.config.model_type} over WikiText-2, {len(ids)} positions", logits_NR
