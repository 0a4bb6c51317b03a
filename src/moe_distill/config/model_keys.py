"""Keys `models` of a profile: where teacher and student come from, and the teacher's correction."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moe_distill.config.values import Count, Positive, Rate, Section, Seed, Weight, Whole

ConfigValue = bool | int | float | str | list[int] | None
PrefixToken = str | Count | None


class TinyTokenizer(Section):
    """A byte-level BPE tokenizer trained on some of the training documents."""

    vocabulary_size: Annotated[Whole, Field(ge=300, lt=2**31)]  # ids
    pre_tokenizer: Literal["qwen", "smollm", "gpt2"]  # whose splitting rules it imitates
    sample_characters: Positive  # of the training documents, about: what it is trained on
    sample_seed: Seed  # of the choice of these


class Attention(Section):
    """Sizes of a small model that must fit each other."""

    hidden_size: Positive  # of the residual stream; a multiple of 2 * heads
    layers: Positive  # how deep the model is
    heads: Positive  # of attention
    key_value_heads: Positive  # that share the heads evenly

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of 2 * heads: rotary embeddings halve a head")
        if self.heads % self.key_value_heads:
            raise ValueError("heads must be a multiple of key_value_heads")
        return self


class TinyTeacher(Attention):
    """A small Qwen3-MoE, trained from random weights on the training split."""

    kind: Literal["tiny"]
    tokenizer: TinyTokenizer
    num_experts: Annotated[Whole, Field(ge=2, lt=2**31)]  # of each layer
    experts_per_token: Positive  # that a token asks
    expert_size: Positive  # width of an expert
    max_length: Positive  # positions: the longest window that it takes
    router_auxiliary_weight: Weight  # of the load-balancing loss in its training
    steps: Positive  # optimizer steps of its training
    batch_windows: Positive  # of a step, each of `max_length` tokens
    learning_rate: Rate  # of its training, at the peak

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.experts_per_token > self.num_experts:
            raise ValueError("experts_per_token must not exceed num_experts")
        return self


class TinyStudent(Attention):
    """A small Llama with random weights: deeper and narrower than the teacher."""

    kind: Literal["tiny"]
    tokenizer: TinyTokenizer
    intermediate_size: Positive  # width of an MLP
    max_length: Positive  # positions: the longest window that it takes


class HubModel(Section):
    """A model of the Hugging Face hub at a pinned revision: safetensors only, no remote code."""

    kind: Literal["hub"]
    repository: str  # owner/name
    revision: str = Field(min_length=1)  # a commit; anything else is refused without `allow_unpinned`
    allow_unpinned: bool = False  # true: whatever a branch or tag names at the first download, recorded from then on
    config: dict[str, ConfigValue] | None = None  # keys of its config.json, for a plan made before it is here
    prefix_token: PrefixToken = None  # begins every window; a token or its id; null: BOS, else EOS


class FolderModel(Section):
    """A local `save_pretrained` folder with its tokenizer."""

    kind: Literal["folder"]
    path: str  # of the folder; a relative one is below the main checkout
    prefix_token: PrefixToken = None  # begins every window; a token or its id; null: BOS, else EOS


class TeacherCorrection(Section):
    """Low-rank adapters, tuned on the training text and merged into the teacher before it is captured."""

    steps: Positive  # optimizer steps
    learning_rate: Rate  # at the peak: a short warm-up, then a cosine to a tenth
    rank: Positive  # of the adapters
    train_experts: bool  # adapters on the experts too, where the teacher has any; else these stay as they are
    train_router: bool  # adapters on the routers too
    batch_windows: Positive  # teacher windows of an optimizer step
    micro_batch_windows: Positive  # of one forward pass, whose logits are held whole; the rest is accumulated
    gradient_checkpointing: bool  # layers are computed twice: less memory, a half more time
    validation_windows: Positive  # evenly spread teacher windows, measured before and after
    checkpoint_every: Positive  # optimizer steps between two checkpoints

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_windows % self.micro_batch_windows:
            raise ValueError("batch_windows must be a multiple of micro_batch_windows")
        return self


class Models(Section):
    """Where teacher and student come from."""

    seed: Seed = 0  # of both models' random weights, where they are made here, and of the teacher's correction
    # made here, of the hub, or a local folder
    teacher: Annotated[TinyTeacher | HubModel | FolderModel, Field(discriminator="kind")]
    teacher_correction: TeacherCorrection | None = None  # null: the teacher is captured as it is
    # the same; the weights that training begins with
    student: Annotated[TinyStudent | HubModel | FolderModel, Field(discriminator="kind")]
