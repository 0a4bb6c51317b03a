"""A pair of models of given sizes with random weights, and random text and targets for them.

What a step costs and how much memory it takes depends on shapes, not on values: so the real pair can be measured where
none of its weights can be had. Token ids are drawn unevenly, so that there is something to learn: their frequencies.

Shapes: docs/architecture.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from moe_distill.batches.batch import Batch, Counts, HiddenRuns
from moe_distill.config.params import ExperimentParams, Params
from moe_distill.config.profile import Profile
from moe_distill.losses.text_loss import Text
from moe_distill.models.decoder import find_decoder
from moe_distill.models.moe_block import find_moe_block
from moe_distill.replay.block import TeacherHead
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.stretches import stretches

ROOT = Path(__file__).parents[1]
BYTES_OF_A_TOKEN = 4
SHARE_WITH_TARGET, SHARE_WITH_STATES = 0.9, 0.5  # of the positions; of the windows
ENTRIES_OF_A_KEPT_ID = 1.5  # student tokens that a target has for each kept teacher id: some become several


@dataclass(frozen=True)
class Sizes:
    """Of one model."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    width: int  # of an MLP, or of an expert


@dataclass(frozen=True)
class Pair:
    """Sizes of both models, and the profile that says how they are run."""

    teacher: Sizes
    student: Sizes
    experts: int  # of the teacher
    profile: str
    experts_per_token: int = 1


REAL = Pair(  # Huihui-MoE-1B-A0.6B and SmolLM-135M
    teacher=Sizes(151_936, 1024, 28, 16, 8, 128, 3072),
    student=Sizes(49_152, 576, 30, 9, 3, 64, 1536),
    experts=3,
    profile="p100",
)
# Of the real pair's layers; the vocabularies stay.
QUARTER = replace(REAL, teacher=replace(REAL.teacher, layers=7), student=replace(REAL.student, layers=7))
TINY = Pair(  # the embedded pair (profiles/tiny.yaml)
    teacher=Sizes(2560, 160, 4, 4, 2, 40, 224),
    student=Sizes(2048, 96, 6, 4, 2, 24, 256),
    experts=4,
    profile="tiny",
    experts_per_token=2,
)
TOY = Pair(
    teacher=Sizes(300, 48, 2, 2, 1, 24, 48),
    student=Sizes(200, 32, 3, 2, 1, 16, 64),
    experts=3,
    profile="test",
)


def params_of(pair: Pair, **train: object) -> Params:
    """The tests' params.yaml, which no user edits, and the pair's profile with other keys of `train`.

    More windows keep states than in the profile, so that a few of them have enough; of a teacher cut to fewer layers,
    the ones in the same place.
    """
    experiment = yaml.safe_load((ROOT / "tests/params.yaml").read_text(encoding="utf-8"))
    profile = yaml.safe_load((ROOT / f"profiles/{pair.profile}.yaml").read_text(encoding="utf-8"))
    profile["train"] |= train
    capture = profile["teacher"]
    capture["hidden_fraction"] = max(SHARE_WITH_STATES, capture["hidden_fraction"])
    last = max(capture["hidden_layers"])
    capture["hidden_layers"] = [round(layer * pair.teacher.layers / last) for layer in capture["hidden_layers"]]
    return Params(
        experiment=ExperimentParams.model_validate(experiment | {"profile": pair.profile}),
        profile=Profile.model_validate(profile),
    )


def make_teacher(pair: Pair, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A Qwen3-MoE in evaluation mode."""
    sizes = pair.teacher
    config = Qwen3MoeConfig(
        **_decoder_settings(sizes),
        num_experts=pair.experts,
        num_experts_per_tok=pair.experts_per_token,
        moe_intermediate_size=sizes.width,
        norm_topk_prob=True,
    )
    return _made(Qwen3MoeForCausalLM, config, dtype, device)


def make_student(pair: Pair, device: torch.device) -> PreTrainedModel:
    """A Llama in fp32."""
    return _made(LlamaForCausalLM, LlamaConfig(**_decoder_settings(pair.student)), torch.float32, device)


def _decoder_settings(sizes: Sizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "head_dim": sizes.head_size,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }


def _made(kind: type[PreTrainedModel], config: Any, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    with torch.device(device):  # weights are drawn where they stay: a minute less
        model: PreTrainedModel = kind(config)
    for parameter in model.parameters():  # not `to`: rotary frequencies stay fp32, as when a folder is loaded
        parameter.data = parameter.data.to(dtype)
    model.eval()
    return model


def replay_head(teacher: PreTrainedModel) -> TeacherHead:
    """What phase 2 asks of the teacher, on its device."""
    block = find_moe_block(teacher, find_decoder(teacher))
    assert not isinstance(block, str), block
    device = next(teacher.parameters()).device
    tensors = {name: tensor.to(device) for name, tensor in block.head.tensors.items()}
    return TeacherHead(block.head.description, tensors)


def random_ids(vocabulary: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Token ids from 1 on, low ones more often, int64."""
    return 1 + (torch.rand(shape, generator=generator) ** 4 * (vocabulary - 1)).long()


def random_batch(pair: Pair, n_windows: int, length: int, generator: torch.Generator) -> Batch:
    """Windows of equal length: a target at nine tenths of the positions, a run of states in every other window."""
    capture = params_of(pair).profile.teacher
    n, runs, run = n_windows * length, round(SHARE_WITH_STATES * n_windows + 0.1), capture.hidden_run
    tokens_BL = random_ids(pair.student.vocabulary, (n_windows, length + 1), generator)
    target = random_target(pair, n, generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden = HiddenRuns(
        places_WP=torch.stack([torch.arange(run) + length - run + number * length for number in range(runs)]),
        mask_WP=torch.ones(runs, run, dtype=torch.bool),
        filled_N=torch.arange(runs * run),
        states_WPST=normal(runs, run, len(capture.hidden_layers), pair.teacher.hidden),
        moe_input_WPT=normal(runs, run, pair.teacher.hidden),
        router_logits_NE=normal(runs * run, pair.experts),
        gate_noise_NE=normal(runs * run, pair.experts),
    )
    return Batch(
        windows=tuple(range(n_windows)),
        dropout_seed=0,
        input_ids_BL=tokens_BL[:, :-1],
        places_N=torch.arange(n),
        text=Text(tokens_BL[:, 1:].flatten(), target, stretches(n, params_of(pair).profile.train.chunk_tokens, target)),
        runs=hidden,
        counts=Counts(n, int(target.has_target_N.sum()), runs * run, n_bytes=BYTES_OF_A_TOKEN * n, places=n),
    )


def random_target(pair: Pair, n: int, generator: torch.Generator) -> SparseTarget:
    """Entries hold nine tenths of the probability."""
    capture, vocabulary = params_of(pair).profile.teacher, pair.student.vocabulary
    entries, samples = round(ENTRIES_OF_A_KEPT_ID * capture.k), capture.tail_samples
    has_target_N = torch.rand(n, generator=generator) < SHARE_WITH_TARGET
    positions = has_target_N.nonzero().squeeze(1)
    probs_AU = 0.9 * torch.randn(len(positions), entries, generator=generator).mul(3).softmax(-1)
    apart = vocabulary // entries  # ids of a position ascend and differ: one from each stretch of the vocabulary
    ids_AU = torch.randint(apart, (len(positions), entries), generator=generator) + apart * torch.arange(entries)
    listed_N = has_target_N.float()
    return SparseTarget(
        temperature=1.0,
        has_target_N=has_target_N,
        has_bucket_N=torch.zeros_like(has_target_N),
        residual_N=0.1 * listed_N,
        listed_mass_N=listed_N,
        entry_positions_Z=positions.repeat_interleave(entries).int(),
        entry_ids_Z=ids_AU.flatten().int(),
        entry_probs_Z=probs_AU.flatten(),
        sample_positions_Y=positions.repeat_interleave(samples).int(),
        sample_ids_Y=torch.randint(vocabulary, (len(positions) * samples,), generator=generator).int(),
        sample_probs_Y=torch.full((len(positions) * samples,), 0.1 / samples),
    )


def drawn_logits(n: int, vocabulary: int) -> Tensor:
    """Zipf's law of a random sharpness for each position, blurred, over ids in random order."""
    generator = torch.Generator().manual_seed(0)
    ranks_R = torch.arange(1, vocabulary + 1).float()
    sharpness_N1 = 1.2 + 1.3 * torch.rand(n, 1, generator=generator)
    blurred_NR = torch.randn(n, vocabulary, generator=generator) - sharpness_N1 * ranks_R.log()
    return blurred_NR[:, torch.randperm(vocabulary, generator=generator)]
