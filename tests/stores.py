"""A random Llama of a few thousand weights, windows and teacher targets on disk."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import TEACHER_TARGETS, open_targets, target_fields
from moe_distill.shards.window_store import (
    STUDENT_FIELDS,
    STUDENT_WINDOWS,
    TEACHER_FIELDS,
    TEACHER_WINDOWS,
    WindowStore,
)
from moe_distill.shards.writer import ShardWriter
from moe_distill.teacher.sparsify import sparsify

STUDENT_VOCABULARY, TEACHER_VOCABULARY, K, PREFIX = 60, 90, 8, 59
TOKENS = [9, 1, 14, 5, 20]  # of the student's windows; the second has one token
BYTES = [27, 3, 42, 15, 60]  # three a token
DOCUMENTS = [0, 0, 1, 3, 3]
TEACHER_TOKENS = [8, 1, 12, 5, 15]
TEACHER_DOCUMENTS = [0, 0, 1, 2, 3]  # the student has no window of document 2

# What a vocabulary map says where the tokenizers are not known
NO_TOKENIZER = {
    "teacher_bytes": torch.zeros(0, dtype=torch.int32),
    "token_rests": torch.zeros(0, dtype=torch.int32),
    "beginnings": torch.zeros(0, dtype=torch.int32),
    "rests": torch.zeros(0, dtype=torch.int32),
    "rest_student_ids": torch.zeros(0, dtype=torch.int32),
    "student_bytes": torch.zeros(0, dtype=torch.int32),
    "student_spelling": torch.zeros(0, dtype=torch.int8),
    "student_tokenizer": torch.zeros(0, dtype=torch.int8),
}


def no_last_tokens(n_tokens: int) -> dict[str, Tensor]:
    """The columns of student tokens before which no token of the teacher begins."""
    return {
        "last_teacher_rows": torch.full((n_tokens,), -1),
        "last_teacher_ids": torch.full((n_tokens,), -1, dtype=torch.int32),
        "last_teacher_bytes": torch.zeros(n_tokens, dtype=torch.int32),
    }


@dataclass(frozen=True)
class Stores:
    student: WindowStore
    teacher: WindowStore
    targets: ShardReader
    student_ids: Tensor  # of each teacher id
    token_ids: list[list[int]]
    teacher_rows: list[list[int]]
    teacher_logits: Tensor  # [teacher positions, teacher vocabulary]
    target_logprob: Tensor


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(39)  # one that puts the teacher's first token first at some positions
    config = LlamaConfig(
        vocab_size=STUDENT_VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.15,
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """Several shards each; a window without an aligned position; fp16 where the format says so."""
    folder = tmp_path_factory.mktemp("stores")
    generator = torch.Generator().manual_seed(1)
    nothing = torch.zeros(0, dtype=torch.int32)
    token_ids = [torch.randint(0, PREFIX, (n,), generator=generator) for n in TOKENS]
    rows = [torch.full((n,), -1) for n in TOKENS]
    start = 0
    for number, (n, n_teacher) in enumerate(zip(TOKENS, TEACHER_TOKENS, strict=True)):
        if number != 3:
            places = torch.randperm(n, generator=generator)[: min(n, n_teacher) * 2 // 3 + 1].sort().values
            taken = torch.randperm(n_teacher, generator=generator)[: len(places)].sort().values
            rows[number][places[: len(taken)]] = taken + start
        start += n_teacher

    student = ShardWriter(folder / "student", STUDENT_FIELDS, "tokens", 12)
    teacher = ShardWriter(folder / "teacher", TEACHER_FIELDS, "tokens", 12)
    targets = ShardWriter(
        folder / "targets", fields := target_fields(K, 4, 0, 16, 0, 0), main_table="positions", rows_per_shard=9
    )
    logits, logprobs = [], []
    for number in range(len(TOKENS)):
        window = {
            "documents": torch.tensor([DOCUMENTS[number]], dtype=torch.int32),
            "byte_starts": torch.tensor([7]),
            "byte_ends": torch.tensor([7 + BYTES[number]]),
        }
        student.append(
            window
            | no_last_tokens(TOKENS[number])
            | {
                "token_ids": token_ids[number].int(),
                "token_counts": torch.tensor([TOKENS[number]], dtype=torch.int32),
                "teacher_rows": rows[number],
                "next_teacher_ids": torch.where(rows[number] >= 0, 0, -1).int(),
                "next_tokens": (rows[number] >= 0).to(torch.int8),
                "token_bytes": nothing if number else torch.full((STUDENT_VOCABULARY,), 3, dtype=torch.int32),
            },
        )
        n = TEACHER_TOKENS[number]
        teacher.append(
            window
            | {
                "documents": torch.tensor([TEACHER_DOCUMENTS[number]], dtype=torch.int32),
                "token_ids": torch.tensor([1] * (n - 1) + [BYTES[number] - n + 1], dtype=torch.int32),
                "token_bytes": nothing if number else torch.arange(TEACHER_VOCABULARY, dtype=torch.int32),
                "token_counts": torch.tensor([n], dtype=torch.int32),
            },
        )
        logits_NV = 3 * torch.randn(n, TEACHER_VOCABULARY, generator=generator)
        record = vars(sparsify(logits_NV, torch.arange(n), K, 4, torch.full((n,), 0.5)))
        columns = {
            "hidden_rows": torch.zeros(0, dtype=torch.int64),
            "hidden": torch.zeros(0, 0, 16, dtype=torch.float16),
            "hidden_scales": torch.zeros(0, 0),
        }
        dtypes = {"int32": torch.int32, "float16": torch.float16, "float32": torch.float32}
        columns |= {name: record[name].to(dtypes[fields[name].dtype]) for name in record}
        targets.append(columns)
        logits.append(logits_NV)
        logprobs.append(record["target_logprob"])
    student.finish(
        STUDENT_WINDOWS,
        "f",
        {"prefix_id": PREFIX, "source_names": '["a", "lost", "b"]', "source_starts": [0, 2, 3]},
    )
    teacher.finish(TEACHER_WINDOWS, "f", {"prefix_id": 0})
    targets.finish(TEACHER_TARGETS, "f", {"output_rows": TEACHER_VOCABULARY})
    student_ids = torch.randint(-1, STUDENT_VOCABULARY - 5, (TEACHER_VOCABULARY,), generator=generator)
    return Stores(
        WindowStore(folder / "student", STUDENT_WINDOWS),
        WindowStore(folder / "teacher", TEACHER_WINDOWS),
        open_targets(folder / "targets"),
        student_ids,
        [ids.tolist() for ids in token_ids],
        [each.tolist() for each in rows],
        torch.cat(logits),
        torch.cat(logprobs),
    )
