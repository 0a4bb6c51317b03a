"""The teacher of the profile `tiny`: a small Qwen3-MoE, trained from random weights on the training split.

Shapes: B windows of a batch, L positions of a window, N positions of a batch, R rows of the output matrix.
"""

import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from moe_distill.config.model_keys import TinyTeacher
from moe_distill.corpus.documents import read_documents
from moe_distill.errors import DivergenceError
from moe_distill.log import log, progress_bar
from moe_distill.losses.auxiliary import router_auxiliary_loss
from moe_distill.models.model_disk_use import require_model_space
from moe_distill.models.packed_windows import Batch, document_batches, packed_tokens, training_batches
from moe_distill.models.tiny_models import decoder_settings, random_model, save_model
from moe_distill.models.tiny_tokenizers import end_of_text_id, train_tokenizer
from moe_distill.utils.device import make_runtime
from moe_distill.utils.learning_rate import warmup_cosine

WARMUP_SHARE = 0.05  # of the steps
FINAL_LEARNING_RATE_SHARE = 0.1  # of the learning rate, at the last step
ADAM_BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
GRADIENT_CLIP = 1.0
LOG_EVERY = 200  # steps
MEASURED_WINDOWS = 32  # windows of a batch when bits per byte are measured


def train_tiny_teacher(
    params: TinyTeacher, seed: int, train_documents: Path, validation_documents: Path, output: Path
) -> dict[str, float]:
    """Train a tokenizer and a model on the training documents; save both, weights in fp32, in `output`.

    On the CPU of one machine equal arguments give equal bytes. The validation documents are only measured on.

    Returns:
        The metrics `teacher_bits_per_byte`, on the validation documents, and `teacher_steps`.

    Raises:
        DataError: there is too little text for the vocabulary or for one window.
        DivergenceError: the loss is not finite.
        ResourceError: the disk cannot take the model.
    """
    tokenizer = train_tokenizer(params.tokenizer, train_documents)
    tokenizer.encode_special_tokens = True  # text such as "<|endoftext|>" is not encoded as a special token
    end_id = end_of_text_id(tokenizer)
    model = _untrained_model(params, tokenizer.get_vocab_size(), end_id, seed)
    require_model_space(model, tokenizer, output)
    model.to(make_runtime("fp32").device)  # type: ignore[arg-type]  # transformers' decorator hides the signature
    tokens = packed_tokens(train_documents, tokenizer, end_id, output)
    batches = training_batches(tokens, end_id, params.max_length, params.batch_windows, seed)
    _train(model, params, batches)
    bits_per_byte = _bits_per_byte(model, tokenizer, validation_documents, params.max_length)
    log(f"models@teacher: {bits_per_byte:.3f} bits per byte on the validation documents")
    save_model(model, tokenizer, params.max_length, output)
    return {"teacher_bits_per_byte": bits_per_byte, "teacher_steps": float(params.steps)}


def output_rows(tokens: int) -> int:
    """Rows of the output matrix: as in Qwen3 a multiple of 128, and more than the tokenizer has tokens."""
    return math.ceil(tokens / 128) * 128 + 128


def _untrained_model(params: TinyTeacher, tokens: int, end_id: int, seed: int) -> PreTrainedModel:
    config = Qwen3MoeConfig(
        vocab_size=output_rows(tokens),
        intermediate_size=params.expert_size,  # of dense blocks; there are none
        num_experts=params.num_experts,
        num_experts_per_tok=params.experts_per_token,
        moe_intermediate_size=params.expert_size,
        norm_topk_prob=True,
        router_aux_loss_coef=params.router_auxiliary_weight,
        **decoder_settings(params, end_id),
    )
    model = random_model(Qwen3MoeForCausalLM, config, seed)
    # Each expert adds to a row once, so sums have one order. The backward pass of `grouped_mm` adds a row's
    # experts in any order; on CPU it is no faster, and on a GPU it needs compute capability 8.
    model.set_experts_implementation("eager")
    return model


def _train(model: PreTrainedModel, params: TinyTeacher, batches: Iterator[Batch]) -> None:
    """Minimise the next-token cross-entropy plus the router's load-balancing loss, in place."""
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=params.learning_rate, betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    warmup_steps = max(1, int(WARMUP_SHARE * params.steps))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, warmup_steps, params.steps, FINAL_LEARNING_RATE_SHARE)
    )
    losses: list[float] = []
    started = time.monotonic()
    for step, (inputs_BL, targets_BL) in enumerate(
        progress_bar(
            islice(batches, params.steps), params.steps, "models@teacher", "steps", lambda batch: batch[0].numel()
        ),
        start=1,
    ):
        output = model(input_ids=inputs_BL.to(model.device), output_router_logits=True, use_cache=False)
        loss = F.cross_entropy(output.logits.flatten(0, 1), targets_BL.to(model.device).flatten())
        balance = router_auxiliary_loss(output.router_logits, params.experts_per_token)
        (loss + params.router_auxiliary_weight * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise DivergenceError(
                f"the tiny teacher's loss is {losses[-1]} at step {step}", fix="lower `learning_rate`"
            )
        if step % LOG_EVERY == 0 or step == params.steps:
            mean = sum(losses[-LOG_EVERY:]) / len(losses[-LOG_EVERY:])
            speed = step * inputs_BL.numel() / (time.monotonic() - started)
            log(f"models@teacher: step {step:,} of {params.steps:,}, loss {mean:.3f} nats/token, {speed:,.0f} tokens/s")


@torch.inference_mode()
def _bits_per_byte(model: PreTrainedModel, tokenizer: Tokenizer, documents: Path, length: int) -> float:
    """Negative log-likelihood of all documents in bits, per UTF-8 byte."""
    model.eval()
    end_id = end_of_text_id(tokenizer)
    nats, size = 0.0, 0
    for batch in read_documents(documents):
        texts = [document.text for document in batch]
        size += sum(len(text.encode()) for text in texts)
        for inputs_BL, targets_BL in document_batches(texts, tokenizer, end_id, length, MEASURED_WINDOWS):
            logits_BLR = model(input_ids=inputs_BL.to(model.device), use_cache=False).logits
            targets = targets_BL.to(model.device).flatten()
            nats += F.cross_entropy(logits_BLR.flatten(0, 1), targets, reduction="sum").item()
    return nats / size / math.log(2)
